//! The options for a network's heads and body, shared by training and importing.

use anyhow::bail;
use clap::{Args, ValueEnum};

use crate::proto::v1;

/// The heads of a network.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct HeadArgs {
    /// A number to predict, with its unit after a colon: age:years. May be given more than once.
    #[arg(long, value_name = "NAME[:UNIT]")]
    regression: Vec<String>,
    /// A choice to predict, with its labels after `=`; without labels, the data's: smoker=no,yes.
    #[arg(long, value_name = "NAME[=LABEL,…]")]
    classification: Vec<String>,
}

impl HeadArgs {
    /// Returns the heads, regressions first, then classifications; empty when no option was given.
    pub(super) fn heads(&self) -> anyhow::Result<Vec<v1::Head>> {
        let regression = self.regression.iter().map(|text| {
            let (name, unit) = text.split_once(':').unwrap_or((text, ""));
            v1::Head::regression(name, unit)
        });
        let classification = self.classification.iter().map(|text| {
            let (name, labels) = text.split_once('=').unwrap_or((text, ""));
            let labels = labels.split(',').filter(|label| !label.is_empty()).map(str::to_owned).collect();
            v1::Head::classification(name, labels)
        });
        let heads: Vec<_> = regression.chain(classification).collect();
        if heads.iter().any(|head| head.name.is_empty()) {
            bail!(super::failure::Usage("a head needs a name, such as age:years".to_owned()));
        }
        Ok(heads)
    }
}

/// Describes a head in one line: `age (years)`, `gender (female, male)`.
pub(super) fn describe(head: &v1::Head) -> String {
    match &head.kind {
        Some(v1::head::Kind::Regression(r)) if !r.unit.is_empty() => format!("{} ({})", head.name, r.unit),
        Some(v1::head::Kind::Classification(c)) => format!("{} ({})", head.name, c.labels.join(", ")),
        _ => head.name.clone(),
    }
}

/// The network's body.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Architecture {
    Resnet18,
    Resnet34,
    Resnet50,
}

impl From<Architecture> for v1::Architecture {
    fn from(architecture: Architecture) -> Self {
        match architecture {
            Architecture::Resnet18 => Self::Resnet18,
            Architecture::Resnet34 => Self::Resnet34,
            Architecture::Resnet50 => Self::Resnet50,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_from_their_short_form() {
        let args = HeadArgs {
            regression: vec!["age:years".to_owned(), "bmi".to_owned()],
            classification: vec!["smoker=no,yes".to_owned(), "gender".to_owned()],
        };
        let described: Vec<_> = args.heads().unwrap().iter().map(describe).collect();
        assert_eq!(described, ["age (years)", "bmi", "smoker (no, yes)", "gender ()"]);
        let nameless = HeadArgs { regression: vec![":years".to_owned()], ..HeadArgs::default() };
        assert!(nameless.heads().is_err());
    }
}

/// A network whose weights can be imported.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum ImportedArchitecture {
    Resnet18,
    Resnet34,
    Resnet50,
    Mtcnn,
    DlibAgeGender,
    DlibFaceDescriptor,
}

impl From<ImportedArchitecture> for v1::Architecture {
    fn from(architecture: ImportedArchitecture) -> Self {
        match architecture {
            ImportedArchitecture::Resnet18 => Self::Resnet18,
            ImportedArchitecture::Resnet34 => Self::Resnet34,
            ImportedArchitecture::Resnet50 => Self::Resnet50,
            ImportedArchitecture::Mtcnn => Self::Mtcnn,
            ImportedArchitecture::DlibAgeGender => Self::DlibAgeGender,
            ImportedArchitecture::DlibFaceDescriptor => Self::DlibFaceDescriptor,
        }
    }
}
