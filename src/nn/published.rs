//! Networks published by others, and the files that hold them.

/// A published network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PublishedNetwork {
    /// P-, R- and O-Net, with dlib's five-point predictor if the folder has it.
    Mtcnn,
    /// dlib's age and gender networks.
    DlibAgeGender,
    /// dlib's face descriptor.
    DlibFaceDescriptor,
}

/// A file of a published network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightsFile {
    /// The file's name in the network's folder.
    pub name: &'static str,
    /// The prefix of its tensors' names.
    pub prefix: &'static str,
    /// Whether the network works without it.
    pub is_optional: bool,
}

impl PublishedNetwork {
    /// Returns the files in the network's folder.
    #[must_use]
    pub fn files(self) -> &'static [WeightsFile] {
        const fn file(name: &'static str, prefix: &'static str) -> WeightsFile {
            WeightsFile { name, prefix, is_optional: false }
        }
        const MTCNN: [WeightsFile; 4] = [
            file("pnet.pt", "pnet."),
            file("rnet.pt", "rnet."),
            file("onet.pt", "onet."),
            WeightsFile { name: "shape_predictor_5_face_landmarks.dat", prefix: "", is_optional: true },
        ];
        const AGE_GENDER: [WeightsFile; 2] = [file("age.onnx", "age."), file("gender.onnx", "gender.")];
        const DESCRIPTOR: [WeightsFile; 1] = [file("dlib_face_recognition_resnet_model_v1.dat", "")];
        match self {
            Self::Mtcnn => &MTCNN,
            Self::DlibAgeGender => &AGE_GENDER,
            Self::DlibFaceDescriptor => &DESCRIPTOR,
        }
    }
}
