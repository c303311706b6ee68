//! Compares the table of methods with descriptors. Used by `build.rs` and tests only.

use std::collections::{BTreeMap, BTreeSet};

use prost_types::FileDescriptorSet;

use super::methods::{CallKind, Service};

/// Returns every difference between the rows and the RPCs of the descriptors, each with its remedy.
pub(super) fn differences<'a>(
    table: impl IntoIterator<Item = &'a Service>,
    descriptors: &FileDescriptorSet,
) -> Vec<String> {
    let mut rpcs = BTreeMap::new();
    for file in &descriptors.file {
        for service in &file.service {
            for rpc in &service.method {
                let path = format!("/{}.{}/{}", file.package(), service.name(), rpc.name());
                rpcs.insert(path, (rpc.client_streaming(), rpc.server_streaming()));
            }
        }
    }
    let (mut wrong, mut seen) = (Vec::new(), BTreeSet::new());
    for service in table {
        for row in service.methods {
            let path = format!("/{}/{}", service.name, row.name);
            let streams = match row.kind {
                CallKind::Unary => (false, false),
                CallKind::RequestStream => (true, true),
                CallKind::ResponseStream => (false, true),
            };
            match rpcs.get(&path) {
                None => wrong.push(format!("{path}: a row without an RPC; remove the row")),
                Some(found) if *found != streams => {
                    let (client, server) = found;
                    wrong.push(format!(
                        "{path}: the row says {:?}, but the RPC has client_streaming = {client}, server_streaming = \
                         {server}; correct the row",
                        row.kind
                    ));
                }
                Some(_) => {}
            }
            if !seen.insert(path.clone()) {
                wrong.push(format!("{path}: has two rows; remove one"));
            }
        }
    }
    wrong.extend(
        rpcs.keys()
            .filter(|path| !seen.contains(*path))
            .map(|path| format!("{path}: an RPC without a row; add one with its costs and permitted callers")),
    );
    wrong
}
