//! A client that knows only the port lists and calls every method, like grpcurl.

use prost::{Message, bytes::Buf};
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor};
use tokio_stream::StreamExt;
use tonic::{
    Code, Request, Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};
use tonic_reflection::pb;

use crate::support::{Channel, server::Home};

/// Requests the services and their files over one of the two protocols.
macro_rules! describe {
    ($version:ident, $channel:expr) => {{
        use pb::$version::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };
        let mut client = ServerReflectionClient::new($channel);
        let mut query = async |message: MessageRequest| {
            let request = ServerReflectionRequest { host: String::new(), message_request: Some(message) };
            let mut answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
            answers.next().await.unwrap().unwrap().message_response.unwrap()
        };
        let MessageResponse::ListServicesResponse(list) = query(MessageRequest::ListServices(String::new())).await
        else {
            panic!("no list of services")
        };
        let mut services: Vec<String> = list.service.into_iter().map(|s| s.name).collect();
        services.sort();
        let mut pool = DescriptorPool::global();
        let mut files = Vec::new();
        for service in &services {
            let symbol = MessageRequest::FileContainingSymbol(service.clone());
            let MessageResponse::FileDescriptorResponse(found) = query(symbol).await else {
                panic!("{service} is not described")
            };
            for file in found.file_descriptor_proto {
                files.push(prost_types::FileDescriptorProto::decode(file.as_slice()).unwrap());
            }
        }
        // Files name their imports; request those as well, then add all in dependency order.
        let mut at = 0;
        while at < files.len() {
            for import in files[at].dependency.clone() {
                if files.iter().any(|f| f.name() == import) || pool.get_file_by_name(&import).is_some() {
                    continue;
                }
                let MessageResponse::FileDescriptorResponse(found) =
                    query(MessageRequest::FileByFilename(import.clone())).await
                else {
                    panic!("{import} is not described")
                };
                for file in found.file_descriptor_proto {
                    files.push(prost_types::FileDescriptorProto::decode(file.as_slice()).unwrap());
                }
            }
            at += 1;
        }
        files.sort_by(|a, b| a.name().cmp(b.name()));
        files.dedup_by(|a, b| a.name() == b.name());
        pool.add_file_descriptor_protos(files).unwrap();
        (services, pool)
    }};
}

#[derive(Clone)]
struct Dynamic(MessageDescriptor);

impl Codec for Dynamic {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        self.clone()
    }

    fn decoder(&mut self) -> Self {
        self.clone()
    }
}

impl Encoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, item: DynamicMessage, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(buffer).map_err(|e| Status::internal(e.to_string()))
    }
}

impl Decoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        let bytes = buffer.copy_to_bytes(buffer.remaining());
        DynamicMessage::decode(self.0.clone(), bytes).map(Some).map_err(|e| Status::internal(e.to_string()))
    }
}

/// Calls a method with an empty message; returns the code of its first answer.
async fn call(channel: Channel, method: &MethodDescriptor) -> Code {
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let request = Request::new(tokio_stream::once(DynamicMessage::new(method.input())));
    let codec = Dynamic(method.output());
    match client.streaming(request, path.parse().unwrap(), codec).await {
        Err(status) => status.code(),
        Ok(answers) => match answers.into_inner().message().await {
            Ok(_) => Code::Ok,
            Err(status) => status.code(),
        },
    }
}

#[tokio::test]
async fn reflection_lists_and_describes_every_service_and_every_method_answers() {
    let server = Home::new("");
    let server = server.serve().await;
    let channel = server.clients().await.channel;
    let (services, pool) = describe!(v1, channel.clone());
    let (old_services, _) = describe!(v1alpha, channel.clone());
    // Each version of reflection lists only itself.
    let ours = |services: &[String]| -> Vec<String> {
        services.iter().filter(|s| !s.starts_with("grpc.reflection.")).cloned().collect()
    };
    assert_eq!(ours(&services), ours(&old_services));
    for expected in [
        "google.longrunning.Operations",
        "grpc.health.v1.Health",
        "visage.v1.FaceService",
        "visage.v1.ModelService",
        "visage.v1.TrainingService",
        "visage.v1.VisageService",
    ] {
        assert!(services.iter().any(|s| s == expected), "{expected} is missing from {services:?}");
    }
    let mut called = 0;
    for service in
        pool.services().filter(|s| s.full_name().starts_with("visage.") || s.full_name().starts_with("google."))
    {
        for method in service.methods() {
            let code = call(channel.clone(), &method).await;
            let expected = [Code::Ok, Code::InvalidArgument, Code::NotFound];
            assert!(expected.contains(&code), "{} answered {code:?} to an empty request", method.full_name());
            called += 1;
        }
    }
    assert_eq!(called, 32, "methods of the contract");
    // The client can also decode the details of errors.
    assert!(pool.get_message_by_name("visage.v1.TrainingRun").is_some());
}
