//! The networks that come published, and the files that hold them.

/// A published network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PublishedNetwork {
    /// P-, R- and O-Net, with dlib's five-point predictor where the folder has it.
    Mtcnn,
    /// dlib's age and gender networks.
    DlibAgeGender,
    /// dlib's face descriptor.
    DlibFaceDescriptor,
}

/// A file of a published network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightsFile {
    /// Its name in the network's folder.
    pub name: &'static str,
    /// What stands before the names of its tensors.
    pub prefix: &'static str,
    /// Whether the network can do without it.
    pub is_optional: bool,
}

impl PublishedNetwork {
    /// The files of its folder.
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
