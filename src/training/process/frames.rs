//! The pipe between a server and its training process: protobuf messages, each after its length as a varint.
//!
//! Both ends check a frame's length before they allocate for it; neither trusts the other.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::AsFd,
};

use prost::Message;

use crate::training::TrainingError;

/// The maximum frame length in bytes. A job with thousands of labels is far below it.
pub(crate) const MAX_FRAME_BYTES: usize = 4 << 20;

/// Writes one message and flushes.
///
/// # Errors
/// Fails when the other end has closed.
pub(crate) fn write_frame<M: Message>(writer: &mut impl Write, message: &M) -> io::Result<()> {
    writer.write_all(&message.encode_length_delimited_to_vec())?;
    writer.flush()
}

/// Reads one message; `None` when the pipe ends between two.
///
/// # Errors
/// [`TrainingError::Protocol`] when the pipe ends within a frame, a frame is longer than [`MAX_FRAME_BYTES`], or it is
/// not such a message.
pub(crate) fn read_frame<M: Message + Default>(reader: &mut impl Read) -> Result<Option<M>, TrainingError> {
    let Some(length) = read_length(reader)? else { return Ok(None) };
    let mut bytes = vec![0; length];
    reader.read_exact(&mut bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => protocol(format!("it ended within a frame of {length} bytes")),
        _ => protocol(error.to_string()),
    })?;
    let message =
        M::decode(bytes.as_slice()).map_err(|error| protocol(format!("a frame of {length} bytes: {error}")))?;
    Ok(Some(message))
}

fn read_length(reader: &mut impl Read) -> Result<Option<usize>, TrainingError> {
    let mut length = 0_u64;
    for shift in [0, 7, 14, 21, 28] {
        let mut byte = [0_u8];
        loop {
            match reader.read(&mut byte) {
                Ok(0) if shift == 0 => return Ok(None),
                Ok(0) => return Err(protocol("it ended within a frame's length".to_owned())),
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(protocol(error.to_string())),
            }
        }
        length |= u64::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            return match usize::try_from(length) {
                Ok(length) if length <= MAX_FRAME_BYTES => Ok(Some(length)),
                _ => Err(protocol(format!("a frame claims {length} bytes, at most {MAX_FRAME_BYTES} are read"))),
            };
        }
    }
    Err(protocol("what arrived is not a frame's length".to_owned()))
}

fn protocol(detail: String) -> TrainingError {
    TrainingError::Protocol { detail }
}

/// Reserves the process's standard output for frames: from now on other output goes to standard error, so it cannot
/// corrupt a frame.
///
/// # Errors
/// Fails when the system has no file descriptor left.
pub(crate) fn claim_stdout() -> io::Result<File> {
    io::stdout().flush()?;
    let frames = io::stdout().as_fd().try_clone_to_owned()?;
    rustix::stdio::dup2_stdout(io::stderr())?;
    Ok(frames.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::worker::{Failed, WorkerEvent, worker_event::Event};

    fn failed(message: String) -> WorkerEvent {
        WorkerEvent { event: Some(Event::Failed(Failed { kind: 6, message })) }
    }

    #[test]
    fn frames_come_back_in_order() {
        let mut pipe = Vec::new();
        let sent: Vec<_> = ["", "a", &"b".repeat(70_000)].map(|text| failed(text.to_owned())).into();
        for event in &sent {
            write_frame(&mut pipe, event).unwrap();
        }
        let mut reader = pipe.as_slice();
        for event in sent {
            assert_eq!(read_frame::<WorkerEvent>(&mut reader).unwrap(), Some(event));
        }
        assert_eq!(read_frame::<WorkerEvent>(&mut reader).unwrap(), None);
    }

    #[test]
    fn a_frame_that_claims_too_much_is_refused_before_it_is_allocated() {
        let mut claim = Vec::new();
        prost::encode_length_delimiter(MAX_FRAME_BYTES + 1, &mut claim).unwrap();
        let error = read_frame::<WorkerEvent>(&mut claim.as_slice()).unwrap_err();
        assert!(matches!(error, TrainingError::Protocol { .. }), "{error}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut reader = bytes.as_slice();
            while let Ok(Some(_)) = read_frame::<WorkerEvent>(&mut reader) {}
        }

        #[test]
        fn a_cut_frame_is_an_error(text in ".{1,50}", cut in 1_usize..10) {
            let mut pipe = Vec::new();
            write_frame(&mut pipe, &failed(text)).unwrap();
            let kept = pipe.len().saturating_sub(cut).max(1);
            prop_assert!(read_frame::<WorkerEvent>(&mut pipe.get(..kept).unwrap_or_default()).is_err());
        }
    }
}
