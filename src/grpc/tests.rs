//! Tests that the table of methods equals the descriptors, and that a wrong table is detected.

use prost::Message;
use prost_types::FileDescriptorSet;

use super::{
    methods::{CallKind, METHODS, Method, PermitKind, Service, find},
    methods_check::differences,
};
use crate::proto;

/// Returns the descriptors of all services, including gRPC's own.
fn served() -> FileDescriptorSet {
    let sets = [
        proto::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let file = sets.iter().flat_map(|set| FileDescriptorSet::decode(*set).unwrap().file).collect();
    FileDescriptorSet { file }
}

/// Returns the differences of a table whose first service has these methods.
fn with_first(methods: &'static [Method]) -> Vec<String> {
    let first = Service { methods, ..METHODS[0] };
    differences([first].iter().chain(&METHODS[1..]), &served())
}

fn leaked(change: impl FnOnce(&mut Vec<Method>)) -> &'static [Method] {
    let mut methods = METHODS[0].methods.to_vec();
    change(&mut methods);
    methods.leak()
}

#[test]
fn the_table_equals_what_is_served() {
    assert_eq!(differences(METHODS, &served()), Vec::<String>::new());
}

#[test]
fn a_table_that_is_wrong_is_seen() {
    let predict = METHODS[0].methods[0];
    let missing = with_first(leaked(|methods| methods.retain(|row| row.name != "Predict")));
    assert!(matches!(&missing[..], [one] if one.contains("/Predict: an RPC without a row")), "{missing:?}");
    let extra = with_first(leaked(|methods| methods.push(Method { name: "Guess", ..predict })));
    assert!(matches!(&extra[..], [one] if one.contains("/Guess: a row without an RPC")), "{extra:?}");
    let streaming = with_first(leaked(|methods| methods[0].kind = CallKind::RequestStream));
    assert!(matches!(&streaming[..], [one] if one.contains("/Predict: the row says RequestStream")), "{streaming:?}");
    let twice = with_first(leaked(|methods| methods.push(predict)));
    assert!(matches!(&twice[..], [one] if one.contains("/Predict: has two rows")), "{twice:?}");
}

#[test]
fn paths_are_found_and_others_are_treated_as_short_calls() {
    assert_eq!(find("/visage.v1.VisageService/StreamPredict").permit, PermitKind::Stream);
    assert_eq!(find("/google.longrunning.Operations/WaitOperation").permit, PermitKind::Watch);
    for unknown in ["", "/", "/x", "/visage.v1.VisageService/", "/visage.v1.VisageService/predict", "/a/StreamPredict"]
    {
        let row = find(unknown);
        assert_eq!(
            (row.name, row.kind, row.permit, row.is_long()),
            ("", CallKind::Unary, PermitKind::Call, false),
            "{unknown}"
        );
    }
}
