//! Reads PyTorch's state dicts: a zip of a pickle and one file per tensor storage; before PyTorch 1.6, concatenated
//! pickles and storages.
//!
//! Only the output of `torch.save(model.state_dict())` is supported: dictionaries of tensors. A pickle is a program for
//! a stack machine. This machine supports only the two functions that rebuild tensors and dictionaries, so no file can
//! run code. Sizes are checked before anything is allocated.

use std::{
    collections::{HashMap, hash_map::Entry},
    io::{Read, Seek},
};

use zip::ZipArchive;

use super::{Dtype, TensorData};

/// The maximum size of a pickle, in bytes; it holds names and shapes only.
const MAX_PICKLE_BYTES: u64 = 16 << 20;

/// The maximum size of all tensors of a file, and of all storages they refer to, in bytes.
const MAX_TENSOR_BYTES: u64 = 512 << 20;

/// Parses a `.pth` file of any PyTorch version; its tensors must be f32 or i64.
///
/// # Errors
/// What is wrong with the bytes.
pub fn parse_state_dict(mut bytes: impl Read + Seek) -> Result<Vec<TensorData>, String> {
    let mut start = Vec::new();
    bytes.by_ref().take(LEGACY_MAGIC.len() as u64).read_to_end(&mut start).map_err(|e| e.to_string())?;
    if start == LEGACY_MAGIC {
        let mut rest = Vec::new();
        bytes.take(MAX_PICKLE_BYTES + MAX_TENSOR_BYTES).read_to_end(&mut rest).map_err(|e| e.to_string())?;
        return parse_legacy(&rest);
    }
    bytes.rewind().map_err(|e| e.to_string())?;
    let mut zip =
        ZipArchive::new(bytes).map_err(|e| format!("neither a zip archive ({e}) nor from PyTorch before 1.6"))?;
    let pickle = zip
        .file_names()
        .find(|name| name.ends_with("/data.pkl"))
        .map(str::to_owned)
        .ok_or("it holds no data.pkl, so it is no PyTorch state dict")?;
    let folder = pickle.trim_end_matches("data.pkl").to_owned();
    let program = read_entry(&mut zip, &pickle, MAX_PICKLE_BYTES)?;
    let (state, _) = Machine::run(&program)?;
    // Tensors may share a storage; each is unpacked once.
    let (mut storages, mut n_unpacked) = (HashMap::<String, Vec<u8>>::new(), 0u64);
    tensors(state, |view| {
        let storage = match storages.entry(format!("{folder}data/{}", view.storage)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let bytes = read_entry(&mut zip, new.key(), MAX_TENSOR_BYTES - n_unpacked)?;
                n_unpacked += bytes.len() as u64;
                new.insert(bytes)
            }
        };
        view.of(storage)
    })
}

/// Returns the tensors of a state dict; `bytes_of` looks up their storages.
fn tensors(
    state: Value,
    mut bytes_of: impl FnMut(&TensorView) -> Result<Vec<u8>, String>,
) -> Result<Vec<TensorData>, String> {
    let Value::Dict(entries) = state else {
        return Err("it does not hold a dictionary; save model.state_dict()".to_owned());
    };
    let (mut tensors, mut total) = (Vec::new(), 0u64);
    for (name, value) in entries {
        let (Value::Text(name), Value::Tensor(tensor)) = (name, value) else {
            return Err("it holds values other than named tensors; save model.state_dict()".to_owned());
        };
        let shape = tensor.check().map_err(|why| format!("tensor {name}: {why}"))?;
        total += tensor.n_bytes();
        if total > MAX_TENSOR_BYTES {
            return Err(format!("it holds more than {MAX_TENSOR_BYTES} bytes of tensors"));
        }
        let bytes = bytes_of(&tensor).map_err(|why| format!("tensor {name}: {why}"))?;
        tensors.push(TensorData { name, shape, dtype: tensor.dtype, bytes: bytes.into() });
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tensors)
}

/// The first bytes of a file before PyTorch 1.6: a pickle of the number 0x1950a86a20f9469cfc6c.
const LEGACY_MAGIC: [u8; 15] = *b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// Parses what follows the magic number: pickles of the format's version, of the machine that wrote it, of the state
/// dict, and of the storages' keys; then each storage as a count of elements and the elements.
fn parse_legacy(bytes: &[u8]) -> Result<Vec<TensorData>, String> {
    let (version, rest) = Machine::run(bytes)?;
    if version != Value::Int(1001) {
        return Err("it has an unknown version of the format before PyTorch 1.6".to_owned());
    }
    let (_machine, rest) = Machine::run(rest)?;
    let (state, rest) = Machine::run(rest)?;
    let (Value::Tuple(keys), mut rest) = Machine::run(rest)? else {
        return Err("it does not list its storages".to_owned());
    };
    let mut widths = HashMap::new();
    if let Value::Dict(entries) = &state {
        let views =
            entries.iter().filter_map(|(_, value)| if let Value::Tensor(view) = value { Some(view) } else { None });
        widths.extend(views.map(|view| (view.storage.as_str(), view.width())));
    }
    let mut storages = HashMap::new();
    for key in keys {
        let Value::Text(key) = key else { return Err("it refers to a storage in an unknown way".to_owned()) };
        // The width of a storage that no tensor refers to would be unknown.
        let width = *widths.get(key.as_str()).ok_or_else(|| format!("no tensor uses its storage {key}"))?;
        let (n_elements, after) = rest.split_first_chunk::<8>().ok_or("it ends within its storages")?;
        let n_bytes = u64::from_le_bytes(*n_elements).checked_mul(width).and_then(|n| usize::try_from(n).ok());
        let (storage, after) = n_bytes.and_then(|n| after.split_at_checked(n)).ok_or("it ends within its storages")?;
        storages.insert(key, storage);
        rest = after;
    }
    tensors(state, |view| view.of(storages.get(&view.storage).ok_or("it has no such storage")?))
}

fn read_entry(zip: &mut ZipArchive<impl Read + Seek>, name: &str, max: u64) -> Result<Vec<u8>, String> {
    let entry = zip.by_name(name).map_err(|e| format!("{name}: {e}"))?;
    if entry.size() > max {
        return Err(format!("{name} claims {} bytes, at most {max} are read", entry.size()));
    }
    let mut bytes = Vec::new();
    // The size in the header is only a claim, so reading is limited.
    entry.take(max + 1).read_to_end(&mut bytes).map_err(|e| format!("{name}: {e}"))?;
    if bytes.len() as u64 > max {
        return Err(format!("{name} has more than {max} bytes"));
    }
    Ok(bytes)
}

/// A tensor as a view of a storage.
#[derive(Clone, Debug, PartialEq)]
struct TensorView {
    storage: String,
    dtype: Dtype,
    offset: u64,
    shape: Vec<i64>,
    strides: Vec<i64>,
}

impl TensorView {
    fn width(&self) -> u64 {
        match self.dtype {
            Dtype::F32 => 4,
            Dtype::I64 => 8,
        }
    }

    fn n_bytes(&self) -> u64 {
        self.shape.iter().map(|d| d.unsigned_abs()).product::<u64>() * self.width()
    }

    /// Returns the view's elements in order. Their order may differ from the storage's, but there may not be more of
    /// them than it holds: otherwise a few bytes could require any amount of memory.
    fn of(&self, storage: &[u8]) -> Result<Vec<u8>, String> {
        let width = self.width() as usize;
        let too_small = || format!("its storage has {} bytes only", storage.len());
        let n_bytes = usize::try_from(self.n_bytes()).ok().filter(|n| *n <= storage.len()).ok_or_else(too_small)?;
        let mut bytes = Vec::with_capacity(n_bytes);
        let mut index = vec![0_i64; self.shape.len()];
        while bytes.len() < n_bytes {
            let ahead: i64 = index.iter().zip(&self.strides).map(|(i, stride)| i * stride).sum();
            // Within i64: `check` has compared the farthest element with the largest storage.
            let at = (self.offset as usize + ahead.unsigned_abs() as usize) * width;
            bytes.extend_from_slice(storage.get(at..at + width).ok_or_else(too_small)?);
            for (i, d) in index.iter_mut().zip(&self.shape).rev() {
                *i += 1;
                if *i < *d {
                    break;
                }
                *i = 0;
            }
        }
        Ok(bytes)
    }

    /// Returns the shape after checking that its size is allowed and that no element lies before or far behind its
    /// storage.
    fn check(&self) -> Result<Vec<i64>, String> {
        let too_large = || "it is too large".to_owned();
        let max_elements = (MAX_TENSOR_BYTES / self.width()) as i64;
        if self.shape.len() > MAX_DIMENSIONS {
            return Err(format!("it has {} dimensions, at most {MAX_DIMENSIONS} are read", self.shape.len()));
        }
        if self.shape.len() != self.strides.len() || self.shape.iter().chain(&self.strides).any(|n| *n < 0) {
            return Err(format!("it has the shape {:?} and the strides {:?}", self.shape, self.strides));
        }
        let (mut n_elements, mut farthest) = (1_i64, i64::try_from(self.offset).map_err(|_| too_large())?);
        for (d, stride) in self.shape.iter().zip(&self.strides) {
            n_elements = n_elements.checked_mul((*d).max(1)).filter(|n| *n <= max_elements).ok_or_else(too_large)?;
            let reach = (d - 1).max(0).checked_mul(*stride).and_then(|reach| farthest.checked_add(reach));
            farthest = reach.filter(|at| *at <= max_elements).ok_or_else(too_large)?;
        }
        Ok(self.shape.clone())
    }
}

/// A value on the machine's stack.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    None,
    Bool,
    Int(i64),
    Float,
    Text(String),
    Tuple(Vec<Value>),
    Dict(Vec<(Value, Value)>),
    /// A class or function, by name.
    Global(String),
    /// A storage's element type and key.
    Storage(Dtype, String),
    Tensor(TensorView),
    Mark,
}

/// The stack machine.
struct Machine<'a> {
    program: &'a [u8],
    stack: Vec<Value>,
    memo: HashMap<u32, Value>,
    /// The size of the values copied so far, see [`Value::size`].
    n_copied: usize,
}

/// The maximum number of values on a stack, and of values copied in total; far above any network's needs.
const MAX_VALUES: usize = 1 << 20;

/// The maximum number of a tensor's dimensions: each is iterated over for every element that is copied.
const MAX_DIMENSIONS: usize = 8;

/// The maximum nesting depth. Deeper values would overflow the stack when dropped.
const MAX_DEPTH: usize = 16;

impl Value {
    fn inner(&self) -> Box<dyn Iterator<Item = &Self> + '_> {
        match self {
            Self::Tuple(values) => Box::new(values.iter()),
            Self::Dict(entries) => Box::new(entries.iter().flat_map(|(key, value)| [key, value])),
            _ => Box::new(std::iter::empty()),
        }
    }

    fn is_deeper_than(&self, depth: usize) -> bool {
        self.inner().any(|inner| depth == 0 || inner.is_deeper_than(depth - 1))
    }

    /// Returns the size of this value and all within, in units of a small value's memory: long texts and shapes count
    /// more.
    fn size(&self) -> usize {
        let own = match self {
            Self::Text(text) | Self::Global(text) | Self::Storage(_, text) => text.len() / 16,
            Self::Tensor(view) => view.storage.len() / 16 + (view.shape.len() + view.strides.len()) / 2,
            _ => 0,
        };
        1 + own + self.inner().map(Self::size).sum::<usize>()
    }
}

fn check_depth(values: &[Value]) -> Result<(), String> {
    if values.iter().any(|value| value.is_deeper_than(MAX_DEPTH)) {
        return Err("its pickle nests values too deeply".to_owned());
    }
    Ok(())
}

impl<'a> Machine<'a> {
    /// Runs the program; returns its result and the bytes behind its end.
    fn run(program: &'a [u8]) -> Result<(Value, &'a [u8]), String> {
        let mut machine = Self { program, stack: Vec::new(), memo: HashMap::new(), n_copied: 0 };
        loop {
            if machine.stack.len() > MAX_VALUES {
                return Err("its pickle holds too many values".to_owned());
            }
            if let Some(value) = machine.step()? {
                return Ok((value, machine.program));
            }
        }
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.program.split_at_checked(n).ok_or("its pickle ends early")?;
        self.program = rest;
        Ok(taken)
    }

    fn number(&mut self, n: usize) -> Result<u32, String> {
        Ok(self.take(n)?.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte)))
    }

    fn text(&mut self, n: usize) -> Result<String, String> {
        String::from_utf8(self.take(n)?.to_vec()).map_err(|_| "its pickle has a name that is not UTF-8".to_owned())
    }

    fn line(&mut self) -> Result<String, String> {
        let end = self.program.iter().position(|b| *b == b'\n').ok_or("its pickle ends early")?;
        let line = self.text(end)?;
        self.take(1)?;
        Ok(line)
    }

    fn pop(&mut self) -> Result<Value, String> {
        self.stack.pop().ok_or_else(|| "its pickle pops from an empty stack".to_owned())
    }

    /// Pops the values above the last mark.
    fn above_mark(&mut self) -> Result<Vec<Value>, String> {
        let at = self.stack.iter().rposition(|v| *v == Value::Mark).ok_or("its pickle lacks a mark")?;
        let values = self.stack.split_off(at + 1);
        self.stack.pop();
        Ok(values)
    }

    fn tuple(&mut self, n: usize) -> Result<(), String> {
        let at = self.stack.len().checked_sub(n).ok_or("its pickle pops from an empty stack")?;
        let values = self.stack.split_off(at);
        check_depth(&values)?;
        self.stack.push(Value::Tuple(values));
        Ok(())
    }

    fn set_items(&mut self, items: Vec<Value>) -> Result<(), String> {
        check_depth(&items)?;
        let Some(Value::Dict(entries)) = self.stack.last_mut() else {
            return Err("its pickle sets items of a value that is not a dictionary".to_owned());
        };
        let mut items = items.into_iter();
        while let (Some(key), Some(value)) = (items.next(), items.next()) {
            entries.push((key, value));
        }
        Ok(())
    }

    fn remember(&mut self, slot: u32) -> Result<(), String> {
        // A dictionary is filled after it was remembered and never recalled, so remembering it would waste a copy.
        match self.stack.last().ok_or("its pickle stores a value from an empty stack")? {
            Value::Dict(_) => {}
            value => {
                count_copy(&mut self.n_copied, value)?;
                self.memo.insert(slot, value.clone());
            }
        }
        Ok(())
    }

    fn recall(&mut self, slot: u32) -> Result<(), String> {
        let value = self.memo.get(&slot).ok_or("its pickle recalls a value that it never stored")?;
        count_copy(&mut self.n_copied, value)?;
        self.stack.push(value.clone());
        Ok(())
    }

    /// Executes one instruction; returns the result after the last.
    fn step(&mut self) -> Result<Option<Value>, String> {
        let code = self.take(1)?[0];
        match code {
            0x80 => drop(self.take(1)?),
            0x95 => drop(self.take(8)?),
            b'.' => return self.pop().map(Some),
            b'(' => self.stack.push(Value::Mark),
            b'N' => self.stack.push(Value::None),
            0x88 | 0x89 => self.stack.push(Value::Bool),
            b'J' => {
                let n = self.number(4)?;
                self.stack.push(Value::Int(i64::from(n as i32)));
            }
            b'K' => {
                let n = self.number(1)?;
                self.stack.push(Value::Int(i64::from(n)));
            }
            b'M' => {
                let n = self.number(2)?;
                self.stack.push(Value::Int(i64::from(n)));
            }
            0x8a => {
                let n = self.number(1)? as usize;
                let bytes = self.take(n)?;
                if n > 8 {
                    return Err("its pickle has a number that is too large".to_owned());
                }
                let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
                let mut whole = [if negative { 0xff } else { 0 }; 8];
                whole[..n].copy_from_slice(bytes);
                self.stack.push(Value::Int(i64::from_le_bytes(whole)));
            }
            b'G' => {
                self.take(8)?;
                self.stack.push(Value::Float);
            }
            b'X' => {
                let n = self.number(4)? as usize;
                let text = self.text(n)?;
                self.stack.push(Value::Text(text));
            }
            0x8c => {
                let n = self.number(1)? as usize;
                let text = self.text(n)?;
                self.stack.push(Value::Text(text));
            }
            b'c' => {
                let name = format!("{}.{}", self.line()?, self.line()?);
                self.stack.push(Value::Global(name));
            }
            0x93 => match (self.pop()?, self.pop()?) {
                (Value::Text(name), Value::Text(module)) => self.stack.push(Value::Global(format!("{module}.{name}"))),
                _ => return Err("its pickle names a class by a value that is not text".to_owned()),
            },
            b')' | b']' => self.stack.push(Value::Tuple(Vec::new())),
            b'}' => self.stack.push(Value::Dict(Vec::new())),
            b't' => {
                let values = self.above_mark()?;
                check_depth(&values)?;
                self.stack.push(Value::Tuple(values));
            }
            0x85..=0x87 => self.tuple(usize::from(code - 0x84))?,
            b'e' => {
                let items = self.above_mark()?;
                check_depth(&items)?;
                match self.stack.last_mut() {
                    Some(Value::Tuple(list)) => list.extend(items),
                    _ => return Err("its pickle appends to a value that is not a list".to_owned()),
                }
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(vec![key, value])?;
            }
            b'u' => {
                let items = self.above_mark()?;
                self.set_items(items)?;
            }
            b'q' => {
                let slot = self.number(1)?;
                self.remember(slot)?;
            }
            b'r' => {
                let slot = self.number(4)?;
                self.remember(slot)?;
            }
            0x94 => {
                let slot = self.memo.len() as u32;
                self.remember(slot)?;
            }
            b'h' => {
                let slot = self.number(1)?;
                self.recall(slot)?;
            }
            b'j' => {
                let slot = self.number(4)?;
                self.recall(slot)?;
            }
            b'Q' => {
                let storage = storage(self.pop()?)?;
                self.stack.push(storage);
            }
            b'R' => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                self.stack.push(call(&function, arguments)?);
            }
            // The state of an ordered dictionary holds its module's version, which is not needed.
            b'b' => drop(self.pop()?),
            other => {
                return Err(format!("its pickle has the instruction {other:#04x}, which a state dict does not need"));
            }
        }
        Ok(None)
    }
}

/// Limits copies: a few bytes that copy their own copies could require any amount of memory.
fn count_copy(n_copied: &mut usize, value: &Value) -> Result<(), String> {
    *n_copied += value.size();
    if *n_copied > MAX_VALUES { Err("its pickle holds too many values".to_owned()) } else { Ok(()) }
}

/// Parses `('storage', class, key, device, elements)`.
fn storage(id: Value) -> Result<Value, String> {
    if let Value::Tuple(parts) = &id
        && let [Value::Text(kind), Value::Global(class), Value::Text(key), ..] = parts.as_slice()
        && kind == "storage"
        && key.bytes().all(|b| b.is_ascii_alphanumeric())
    {
        let dtype = match class.as_str() {
            "torch.FloatStorage" => Dtype::F32,
            "torch.LongStorage" => Dtype::I64,
            other => return Err(format!("it holds a {other}; only float32 and int64 tensors are read")),
        };
        return Ok(Value::Storage(dtype, key.clone()));
    }
    Err("its pickle refers to a storage in an unknown way".to_owned())
}

/// Calls one of the two functions that a state dict needs.
fn call(function: &Value, arguments: Value) -> Result<Value, String> {
    let (Value::Global(name), Value::Tuple(arguments)) = (function, arguments) else {
        return Err("its pickle calls a value that is not a function".to_owned());
    };
    let numbers = |value: &Value| match value {
        Value::Tuple(values) => values.iter().map(|v| if let Value::Int(n) = v { Some(*n) } else { None }).collect(),
        _ => None,
    };
    match (name.as_str(), arguments.as_slice()) {
        ("collections.OrderedDict", _) => Ok(Value::Dict(Vec::new())),
        (
            "torch._utils._rebuild_tensor_v2",
            [Value::Storage(dtype, storage), Value::Int(offset), shape, strides, ..],
        ) => {
            let view = u64::try_from(*offset).ok().zip(numbers(shape)).zip(numbers(strides));
            let ((offset, shape), strides) = view.ok_or("its pickle has a tensor without valid numbers")?;
            Ok(Value::Tensor(TensorView { storage: storage.clone(), dtype: *dtype, offset, shape, strides }))
        }
        ("torch._utils._rebuild_parameter", [tensor @ Value::Tensor(_), ..]) => Ok(tensor.clone()),
        (other, _) => Err(format!("its pickle calls {other}, which a state dict does not need")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    /// `torch.save({"a.weight": torch.arange(6.).reshape(2, 3), "n": torch.tensor(7)})` of PyTorch 2.11, run by
    /// `benches/peers/state_dict.py`.
    const FIXTURE: &[u8] = include_bytes!("../../tests/fixtures/state_dict.pth");

    #[test]
    fn a_few_bytes_neither_nest_nor_multiply_without_end() {
        let deep = [b")".as_slice(), &b"\x85".repeat(50_000), b"."].concat();
        assert!(Machine::run(&deep).unwrap_err().contains("deep"));
        // A thousand values, remembered once and recalled two thousand times.
        let wide = [b"(".as_slice(), &b"K\x01".repeat(1000), b"tq\0", &b"h\0".repeat(2000), b"."].concat();
        assert!(Machine::run(&wide).unwrap_err().contains("too many"));
    }

    #[test]
    fn a_file_of_pytorch_is_read() {
        let tensors = parse_state_dict(Cursor::new(FIXTURE)).unwrap();
        let values: Vec<u8> = (0..6u8).flat_map(|i| f32::from(i).to_le_bytes()).collect();
        let expected = [
            TensorData { name: "a.weight".to_owned(), shape: vec![2, 3], dtype: Dtype::F32, bytes: values.into() },
            TensorData {
                name: "n".to_owned(),
                shape: vec![],
                dtype: Dtype::I64,
                bytes: 7i64.to_le_bytes().to_vec().into(),
            },
        ];
        assert_eq!(tensors, expected);
    }

    /// The same in the format before PyTorch 1.6, saved with `_use_new_zipfile_serialization=False`.
    const LEGACY_FIXTURE: &[u8] = include_bytes!("../../tests/fixtures/state_dict_legacy.pth");

    #[test]
    fn a_transposed_view_is_read_in_its_own_order() {
        let view = |shape: &[i64], strides: &[i64], offset| TensorView {
            storage: String::new(),
            dtype: Dtype::F32,
            offset,
            shape: shape.to_vec(),
            strides: strides.to_vec(),
        };
        let storage: Vec<u8> = (0..6u8).flat_map(|i| f32::from(i).to_le_bytes()).collect();
        let read = |view: &TensorView| {
            view.check()?;
            let bytes = view.of(&storage)?;
            Ok::<Vec<f32>, String>(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
        };
        assert_eq!(read(&view(&[3, 2], &[1, 3], 0)).unwrap(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(read(&view(&[2], &[3], 1)).unwrap(), [1.0, 4.0]);
        assert_eq!(read(&view(&[], &[], 5)).unwrap(), [5.0]);
        assert!(read(&view(&[0, 4], &[4, 1], 0)).unwrap().is_empty());
        for (shape, strides, offset) in [
            (&[7_i64][..], &[0_i64][..], 0),
            (&[2], &[1], 5),
            (&[2], &[-1], 3),
            (&[1 << 40], &[1], 0),
            (&[2], &[i64::MAX], 0),
        ] {
            assert!(read(&view(shape, strides, offset)).is_err(), "{shape:?} {strides:?} {offset}");
        }
    }

    #[test]
    fn a_file_of_an_old_pytorch_holds_the_same() {
        let old = parse_state_dict(Cursor::new(LEGACY_FIXTURE)).unwrap();
        assert_eq!(old, parse_state_dict(Cursor::new(FIXTURE)).unwrap());
        for n in LEGACY_MAGIC.len()..LEGACY_FIXTURE.len() {
            assert!(parse_state_dict(Cursor::new(&LEGACY_FIXTURE[..n])).is_err(), "cut at {n}");
        }
    }

    #[test]
    fn a_pickle_that_calls_other_functions_is_refused() {
        let error = Machine::run(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.").unwrap_err();
        assert!(error.contains("os.system"), "{error}");
    }

    proptest! {
        #[test]
        fn any_program_ends_in_a_value_or_an_error(program in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Machine::run(&program);
        }

        #[test]
        fn damaged_files_end_in_tensors_or_an_error(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut bytes = FIXTURE.to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = parse_state_dict(Cursor::new(bytes));
            let mut legacy = LEGACY_FIXTURE.to_vec();
            let at = at.min(legacy.len() - 1);
            legacy[at] = byte;
            let _ = parse_state_dict(Cursor::new(legacy));
        }
    }
}
