//! Reads age and gender from one face with two of dlib's networks.

use super::{
    Device, DlibPlainConfig, DlibPlainNet, DlibResNet, DlibResNetConfig, NnError, TensorData, network::strip_prefix,
};

/// The side of the chips that both networks read, in pixels; the gender network gets them at half the size.
pub const AGE_GENDER_SIDE_PX: u32 = 64;

/// The output for one face.
#[derive(Clone, Debug, PartialEq)]
pub struct AgeGenderOutput {
    /// The expected age, in years.
    pub age: f32,
    /// The standard deviation of the distribution over ages, in years.
    pub age_spread: f32,
    /// The probabilities of female and male; they sum to one.
    pub gender: [f32; 2],
}

/// Both networks with fixed weights on one device.
///
/// Each network runs on a face and on its mirror image, and the results are averaged. Neither side is more correct, and
/// on the training part of the development photos the mean is 0.1 years closer to the truth.
#[derive(Debug)]
pub struct AgeGender {
    age: DlibResNet,
    gender: DlibPlainNet,
}

impl AgeGender {
    /// Loads the tensors of `age.*` and `gender.*`.
    ///
    /// # Errors
    /// [`NnError::WeightsMismatch`] naming the tensors that do not fit, [`NnError::OutOfMemory`].
    pub fn load(tensors: &[TensorData], device: Device) -> Result<Self, NnError> {
        let [age, gender] = strip_prefix(tensors, ["age.", "gender."])?;
        Ok(Self {
            age: DlibResNet::load(&DlibResNetConfig::age(), &age, device)?,
            gender: DlibPlainNet::load(&DlibPlainConfig::gender(), &gender, device)?,
        })
    }

    /// Runs both networks on interleaved RGB squares of [`AGE_GENDER_SIDE_PX`], up to half the largest bucket.
    ///
    /// # Errors
    /// [`NnError::OutOfMemory`], or [`NnError::Torch`] for pixels of another size or too many of them.
    pub fn infer(&self, rgb: &[&[u8]]) -> Result<Vec<AgeGenderOutput>, NnError> {
        let side = AGE_GENDER_SIDE_PX as usize;
        if rgb.iter().any(|chip| chip.len() != side * side * 3) {
            return Err(NnError::Torch { detail: format!("a chip is not a square of {side} pixels") });
        }
        let mirrored: Vec<Vec<u8>> = rgb.iter().map(|chip| mirror(chip, side)).collect();
        let large: Vec<&[u8]> = rgb.iter().copied().chain(mirrored.iter().map(Vec::as_slice)).collect();
        let halved: Vec<Vec<u8>> = large.iter().map(|chip| halve(chip, side)).collect();
        let ages = self.age.infer(&large)?;
        let genders = self.gender.infer(&halved.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
        let n = rgb.len();
        Ok((0..n).map(|i| output([&ages[i], &ages[n + i]], [&genders[i], &genders[n + i]])).collect())
    }
}

/// Averages the distributions of a face and its mirror image, and computes the output.
fn output(ages: [&Vec<f32>; 2], genders: [&Vec<f32>; 2]) -> AgeGenderOutput {
    let ages = mean_distribution(ages);
    // As trained and published: the first class means a quarter of a year, each other its number.
    let years = |class: usize| if class == 0 { 0.25 } else { class as f32 };
    let age: f32 = ages.iter().enumerate().map(|(class, p)| p * years(class)).sum();
    let variance: f32 = ages.iter().enumerate().map(|(class, p)| p * (years(class) - age).powi(2)).sum();
    let genders = mean_distribution(genders);
    let gender = [0, 1].map(|i: usize| genders.get(i).copied().unwrap_or(f32::NAN));
    AgeGenderOutput { age, age_spread: variance.max(0.0).sqrt(), gender }
}

fn mean_distribution([one, other]: [&Vec<f32>; 2]) -> Vec<f32> {
    softmax(one).into_iter().zip(softmax(other)).map(|(a, b)| (a + b) / 2.0).collect()
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = logits.iter().map(|logit| (logit - largest).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

/// Mirrors a chip left to right.
fn mirror(chip: &[u8], side: usize) -> Vec<u8> {
    chip.chunks_exact(side * 3).flat_map(|row| row.chunks_exact(3).rev().flatten().copied()).collect()
}

/// Averages every four pixels into one.
fn halve(chip: &[u8], side: usize) -> Vec<u8> {
    let half = side / 2;
    let mut halved = Vec::with_capacity(half * half * 3);
    for (y, x) in (0..half).flat_map(|y| (0..half).map(move |x| (y, x))) {
        for channel in 0..3 {
            let value = |dy: usize, dx: usize| u32::from(chip[((2 * y + dy) * side + 2 * x + dx) * 3 + channel]);
            // At most 255.
            halved.push(((value(0, 0) + value(0, 1) + value(1, 0) + value(1, 1) + 2) / 4) as u8);
        }
    }
    halved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chips_are_mirrored_and_halved() {
        let chip: Vec<u8> = (0..4 * 4).flat_map(|i| [i, 100, 200]).collect();
        let mirrored = mirror(&chip, 4);
        assert_eq!(mirrored[..12], [3, 100, 200, 2, 100, 200, 1, 100, 200, 0, 100, 200]);
        assert_eq!(mirror(&mirrored, 4), chip);
        // 0, 1, 4 and 5.
        assert_eq!(halve(&chip, 4)[..6], [3, 100, 200, 5, 100, 200]);
    }

    #[test]
    fn the_answer_is_the_mean_of_both_sides() {
        let sure_of = |class: usize| (0..81).map(|i| if i == class { 50.0 } else { 0.0 }).collect::<Vec<f32>>();
        let both = output([&sure_of(20), &sure_of(40)], [&vec![10.0, -10.0], &vec![-10.0, 10.0]]);
        assert!((both.age - 30.0).abs() < 1e-3 && (both.age_spread - 10.0).abs() < 1e-3, "{both:?}");
        assert!((both.gender[0] - 0.5).abs() < 1e-6);
        let newborn = output([&sure_of(0), &sure_of(0)], [&vec![0.0, 0.0], &vec![0.0, 0.0]]);
        assert!((newborn.age - 0.25).abs() < 1e-3);
    }
}
