//! Reads the initialisers and nodes of an ONNX file's graph.
//!
//! An ONNX file is a protocol buffer. Only the few fields that are needed are read, every list has a maximum length,
//! and tensors whose data is in other files are refused. [`parse_dlib_onnx`](super::parse_dlib_onnx) derives the names
//! of weights from the graph's nodes.

use std::borrow::Cow;

use super::{
    Dtype, TensorData,
    protobuf::{Content, fields, varint},
};

/// The maximum number of nodes, initialisers or outputs of a graph.
const MAX_ITEMS: usize = 4096;

/// The maximum number of inputs, outputs or attributes of a node, and of numbers in an attribute.
const MAX_NODE_ITEMS: usize = 64;

/// The maximum number of a tensor's integers that are listed one by one instead of as bytes.
const MAX_LISTED_INTEGERS: usize = 4096;

/// The maximum number of a tensor's dimensions.
const MAX_DIMENSIONS: usize = 8;

/// Returns the initialisers of an ONNX file's graph, under the file's own names; all must be f32 or i64.
///
/// # Errors
/// What is wrong with the bytes.
#[cfg(test)]
pub(super) fn parse_onnx(bytes: &[u8]) -> Result<Vec<TensorData>, String> {
    let mut tensors =
        Graph::read(bytes)?.initialisers.into_iter().map(Initialiser::data).collect::<Result<Vec<_>, _>>()?;
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tensors)
}

/// The parts of a graph that are read.
#[derive(Debug, Default)]
pub(super) struct Graph<'a> {
    pub(super) nodes: Vec<Node<'a>>,
    pub(super) initialisers: Vec<Initialiser<'a>>,
    pub(super) outputs: Vec<String>,
}

impl<'a> Graph<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let mut graph = None;
        for field in fields(bytes) {
            if let (7, Content::Bytes(bytes)) = field? {
                graph = Some(bytes);
            }
        }
        let mut this = Self::default();
        for field in fields(graph.ok_or("it holds no graph, so it is no ONNX model")?) {
            match field? {
                (1, Content::Bytes(bytes)) => push(&mut this.nodes, Node::read(bytes)?, MAX_ITEMS, "nodes")?,
                (5, Content::Bytes(bytes)) => {
                    push(&mut this.initialisers, Initialiser::read(bytes)?, MAX_ITEMS, "initialisers")?
                }
                (12, Content::Bytes(bytes)) => {
                    for field in fields(bytes) {
                        if let (1, Content::Bytes(name)) = field? {
                            push(&mut this.outputs, text(name)?.to_owned(), MAX_ITEMS, "outputs")?;
                        }
                    }
                }
                (15, _) => return Err("it holds sparse tensors, which are not read".to_owned()),
                _ => {}
            }
        }
        Ok(this)
    }
}

#[derive(Debug, Default)]
pub(super) struct Node<'a> {
    pub(super) name: &'a str,
    pub(super) op: &'a str,
    pub(super) inputs: Vec<&'a str>,
    pub(super) outputs: Vec<&'a str>,
    attributes: Vec<Attribute<'a>>,
}

#[derive(Debug, Default)]
pub(super) struct Attribute<'a> {
    pub(super) name: &'a str,
    float: f32,
    int: i64,
    pub(super) text: &'a [u8],
    ints: Vec<i64>,
}

impl<'a> Node<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let mut node = Self::default();
        for field in fields(bytes) {
            match field? {
                (1, Content::Bytes(name)) => push(&mut node.inputs, text(name)?, MAX_NODE_ITEMS, "inputs of a node")?,
                (2, Content::Bytes(name)) => push(&mut node.outputs, text(name)?, MAX_NODE_ITEMS, "outputs of a node")?,
                (3, Content::Bytes(name)) => node.name = text(name)?,
                (4, Content::Bytes(op)) => node.op = text(op)?,
                (5, Content::Bytes(bytes)) => {
                    push(&mut node.attributes, Attribute::read(bytes)?, MAX_NODE_ITEMS, "attributes of a node")?;
                }
                _ => {}
            }
        }
        Ok(node)
    }

    pub(super) fn input(&self, i: usize) -> Result<&'a str, String> {
        self.inputs.get(i).copied().ok_or_else(|| format!("has {} inputs", self.inputs.len()))
    }

    pub(super) fn output(&self) -> Result<&'a str, String> {
        match self.outputs.as_slice() {
            [output] => Ok(output),
            other => Err(format!("has {} outputs", other.len())),
        }
    }

    pub(super) fn attribute(&self, name: &str) -> Option<&Attribute<'a>> {
        self.attributes.iter().find(|attribute| attribute.name == name)
    }

    pub(super) fn int(&self, name: &str, default: i64) -> i64 {
        self.attribute(name).map_or(default, |attribute| attribute.int)
    }

    pub(super) fn float(&self, name: &str, default: f32) -> f32 {
        self.attribute(name).map_or(default, |attribute| attribute.float)
    }

    pub(super) fn ints(&self, name: &str) -> &[i64] {
        self.attribute(name).map_or(&[], |attribute| &attribute.ints)
    }

    /// Refuses attributes other than the `known` ones.
    pub(super) fn only(&self, known: &[&str]) -> Result<(), String> {
        if self.attribute("auto_pad").is_some_and(|auto| auto.text != b"NOTSET") {
            return Err("has automatic padding (auto_pad)".to_owned());
        }
        match self.attributes.iter().find(|attribute| !known.contains(&attribute.name)) {
            Some(other) => Err(format!("has the unsupported attribute {}", other.name)),
            None => Ok(()),
        }
    }
}

impl<'a> Attribute<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let mut attribute = Self::default();
        for field in fields(bytes) {
            match field? {
                (1, Content::Bytes(name)) => attribute.name = text(name)?,
                (2, Content::Four(bytes)) => attribute.float = f32::from_le_bytes(bytes),
                (3, Content::Number(n)) => attribute.int = n.cast_signed(),
                (4, Content::Bytes(bytes)) => attribute.text = bytes,
                (8, content) => numbers(content, &mut attribute.ints, MAX_NODE_ITEMS)?,
                _ => {}
            }
        }
        Ok(attribute)
    }
}

/// A tensor in the file.
#[derive(Debug, Default)]
pub(super) struct Initialiser<'a> {
    pub(super) name: &'a str,
    shape: Vec<i64>,
    data_type: u64,
    raw: Option<&'a [u8]>,
    floats: Cow<'a, [u8]>,
    ints: Vec<i64>,
    external: bool,
}

impl<'a> Initialiser<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let mut tensor = Self::default();
        for field in fields(bytes) {
            match field? {
                (1, content) => numbers(content, &mut tensor.shape, MAX_DIMENSIONS)?,
                (2, Content::Number(n)) => tensor.data_type = n,
                (4, Content::Bytes(bytes)) if tensor.floats.is_empty() => tensor.floats = Cow::Borrowed(bytes),
                (4, Content::Bytes(bytes)) => tensor.floats.to_mut().extend_from_slice(bytes),
                (4, Content::Four(bytes)) => tensor.floats.to_mut().extend_from_slice(&bytes),
                (7, content) => numbers(content, &mut tensor.ints, MAX_LISTED_INTEGERS)?,
                (8, Content::Bytes(name)) => tensor.name = text(name)?,
                (9, Content::Bytes(raw)) => tensor.raw = Some(raw),
                (13, _) => tensor.external = true,
                (14, Content::Number(n)) => tensor.external |= n != 0,
                _ => {}
            }
        }
        Ok(tensor)
    }

    pub(super) fn data(self) -> Result<TensorData, String> {
        let name = self.name.to_owned();
        if name.is_empty() {
            return Err("it holds a tensor without a name".to_owned());
        }
        if self.external {
            return Err(format!("tensor {name} is stored in another file; save the model with its data inside"));
        }
        let (dtype, width, listed) = match self.data_type {
            1 => (Dtype::F32, 4, self.floats),
            7 => (Dtype::I64, 8, Cow::Owned(self.ints.iter().flat_map(|n| n.to_le_bytes()).collect())),
            other => return Err(format!("tensor {name} has the data type {other}; only 1 (f32) and 7 (i64) are read")),
        };
        let n_bytes = self.shape.iter().try_fold(width, |n: usize, d| n.checked_mul(usize::try_from(*d).ok()?));
        let bytes = match self.raw {
            Some(raw) if listed.is_empty() => Cow::Borrowed(raw),
            Some(_) => return Err(format!("tensor {name} stores its numbers twice")),
            None => listed,
        };
        if n_bytes != Some(bytes.len()) {
            return Err(format!("tensor {name} has {} bytes, expected the shape {:?}", bytes.len(), self.shape));
        }
        Ok(TensorData { name, shape: self.shape, dtype, bytes: bytes.into_owned().into() })
    }
}

/// Reads integers: a field holds one or many.
fn numbers(content: Content<'_>, into: &mut Vec<i64>, max: usize) -> Result<(), String> {
    match content {
        Content::Number(n) => into.push(n.cast_signed()),
        Content::Bytes(mut bytes) => {
            while !bytes.is_empty() && into.len() <= max {
                let n = varint(&mut bytes).ok_or("it holds a list of numbers that is cut short")?;
                into.push(n.cast_signed());
            }
        }
        Content::Four(_) | Content::Eight => return Err("it holds a list of numbers of another type".to_owned()),
    }
    if into.len() > max { Err(format!("it holds a list of more than {max} numbers")) } else { Ok(()) }
}

fn push<T>(list: &mut Vec<T>, item: T, max: usize, what: &str) -> Result<(), String> {
    if list.len() >= max {
        return Err(format!("it has more than {max} {what}"));
    }
    list.push(item);
    Ok(())
}

fn text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|_| "it holds a name that is not UTF-8".to_owned())
}
