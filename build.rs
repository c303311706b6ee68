//! Compiles the protos without a system `protoc`, checks the table of methods against the contract, and adds libtorch's
//! folder to the binaries' rpath.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

#[allow(dead_code, reason = "only the edge reads all of it")]
#[path = "src/grpc/methods.rs"]
mod methods;
#[path = "src/grpc/methods_check.rs"]
mod methods_check;

const PROTOS: &[&str] = &[
    "google/longrunning/operations.proto",
    "visage/v1/errors.proto",
    "visage/v1/face.proto",
    "visage/v1/face_service.proto",
    "visage/v1/identity.proto",
    "visage/v1/model_service.proto",
    "visage/v1/prediction.proto",
    "visage/v1/recipe.proto",
    "visage/v1/training_service.proto",
    "visage/v1/visage_service.proto",
    "visage/store/v1/records.proto",
    "visage/worker/v1/worker.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    // Reflection shows only the public contract.
    let mut public = descriptors.clone();
    public.file.retain(|f| !matches!(f.package(), "visage.store.v1" | "visage.worker.v1"));
    fs::write(out.join("visage_v1.bin"), public.encode_to_vec())?;
    let contract = methods::METHODS.iter().filter(|service| service.needs.is_some());
    let wrong = methods_check::differences(contract, &public);
    if !wrong.is_empty() {
        wrong.iter().for_each(|line| eprintln!("src/grpc/methods.rs: {line}"));
        return Err("the table of methods and the contract under proto/ differ".into());
    }
    let mut config = prost_build::Config::new();
    // Only a message with a type name has a JSON form.
    config.enable_type_names();
    // `published.toml` and the command line use the field names.
    config.type_attribute(
        ".visage.v1.QualityThresholds",
        "#[derive(serde::Serialize, serde::Deserialize)] #[serde(deny_unknown_fields, default)]",
    );
    tonic_prost_build::configure()
        .btree_map(".")
        .bytes(".visage.v1")
        .extern_path(".google.rpc.Status", "::tonic_types::Status")
        .compile_fds_with_config(descriptors, config)?;
    if let Ok(libtorch) = env::var("LIBTORCH") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{libtorch}/lib");
    }
    Ok(())
}
