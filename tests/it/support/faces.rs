//! Draws labelled pictures from a seed, for tests that train: simple heads whose colour tells the age and whose shape
//! tells the gender, so that a small network learns both in a minute. The hair and the eyes belong to a person, so
//! that two pictures of one person are more alike than those of two.

use std::{
    fs,
    io::Cursor,
    path::{Path, PathBuf},
};

use image::{ImageFormat, Rgb, RgbImage};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Width and height of a picture in pixels.
const SIDE_PX: u32 = 80;
/// The oldest that is drawn, in years.
const MAX_AGE: u8 = 90;

/// Who is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Person {
    /// Years, 1 to 90: the head's colour, from blue over grey to red.
    pub(crate) age: u8,
    /// A square head; a round one otherwise.
    pub(crate) is_female: bool,
    /// Hair and eyes.
    pub(crate) identity: u64,
}

impl Person {
    /// The person of a number; neighbours in number have nothing in common.
    pub(crate) fn of(identity: u64) -> Self {
        let mut dice = ChaCha8Rng::seed_from_u64(identity);
        Self { age: dice.random_range(1..=MAX_AGE), is_female: dice.random(), identity }
    }

    /// `female` or `male`.
    pub(crate) fn gender(self) -> &'static str {
        if self.is_female { "female" } else { "male" }
    }

    /// One picture; another `shot` moves the head and changes the noise.
    pub(crate) fn draw(self, shot: u64) -> RgbImage {
        let mut person = ChaCha8Rng::seed_from_u64(self.identity ^ 0x5eed);
        let hair: [u8; 3] = person.random();
        let eyes: [u8; 3] = person.random();
        let (hair_px, eye_px) = (person.random_range(4..14), person.random_range(6..13));
        let mut dice = ChaCha8Rng::seed_from_u64(shot.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ self.identity);
        let centre = i64::from(SIDE_PX / 2);
        let (at_x, at_y) = (centre + dice.random_range(-5..=5), centre + dice.random_range(-5..=5));
        let radius = dice.random_range(24..=28);
        let years = f32::from(self.age) / f32::from(MAX_AGE);
        let skin = [40.0 + 200.0 * years, 110.0, 240.0 - 200.0 * years];
        RgbImage::from_fn(SIDE_PX, SIDE_PX, |x, y| {
            let (dx, dy) = (i64::from(x) - at_x, i64::from(y) - at_y);
            let is_head =
                if self.is_female { dx.abs().max(dy.abs()) < radius } else { dx * dx + dy * dy < radius * radius };
            let is_eye = (dx.abs() - eye_px).pow(2) + (dy + 4).pow(2) < 12;
            let is_mouth = dx.abs() < 9 && (12..15).contains(&dy);
            let colour = match () {
                () if is_eye => eyes.map(f32::from),
                () if is_mouth => [60.0, 20.0, 20.0],
                () if is_head && dy < hair_px - radius => hair.map(f32::from),
                () if is_head => skin,
                () => [200.0, 200.0, 190.0],
            };
            let noise = dice.random_range(-10.0..10.0_f32);
            Rgb(colour.map(|channel| (channel + noise).clamp(0.0, 255.0) as u8))
        })
    }

    /// One picture as a file's bytes.
    pub(crate) fn photo(self, shot: u64, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        self.draw(shot).write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }
}

/// Writes the persons `first..first + n` as a folder of UTKFace names, JPEG and PNG by turns; gives the files.
pub(crate) fn write_utkface(folder: &Path, first: u64, n: u64) -> Vec<PathBuf> {
    fs::create_dir_all(folder).unwrap();
    (first..first + n)
        .map(|identity| {
            let person = Person::of(identity);
            let (format, extension) = format_of(identity);
            let (age, gender) = (person.age, u8::from(person.is_female));
            let file = folder.join(format!("{age}_{gender}_{}_{:017}.{extension}", identity % 5, identity));
            fs::write(&file, person.photo(0, format)).unwrap();
            file
        })
        .collect()
}

/// Writes the persons `0..n` as `faces/*` and the table `faces.csv` with the columns path, age, gender, smoker (a
/// label that every third row lacks) and split; every fifth row is `valid`, every tenth `calibration`. Gives the table.
pub(crate) fn write_table(folder: &Path, n: u64) -> PathBuf {
    fs::create_dir_all(folder.join("faces")).unwrap();
    let mut table = "path,age,gender,smoker,split\n".to_owned();
    for identity in 0..n {
        let person = Person::of(identity);
        let (format, extension) = format_of(identity);
        let path = format!("faces/{identity}.{extension}");
        fs::write(folder.join(&path), person.photo(0, format)).unwrap();
        let smoker = match identity % 3 {
            0 => "",
            _ if person.age > 45 => "yes",
            _ => "no",
        };
        let split = match identity % 10 {
            4 | 9 => "valid",
            7 => "calibration",
            _ => "train",
        };
        table.push_str(&format!("{path},{},{},{smoker},{split}\n", person.age, person.gender()));
    }
    let file = folder.join("faces.csv");
    fs::write(&file, table).unwrap();
    file
}

/// Adds files to a folder of UTKFace names that a training must report and go on: a name with a field too few, a name
/// with a space, a JPEG cut short and a text that calls itself a JPEG. Gives their names.
pub(crate) fn write_bad_files(folder: &Path) -> [&'static str; 4] {
    let whole = Person::of(0).photo(0, ImageFormat::Jpeg);
    let names = ["39_1_20170116174525125.jpg", "24_0_1_20170116220224657 .jpg", "30_0_1_1.jpg", "30_1_1_2.jpg"];
    let contents: [&[u8]; 4] = [&whole, &whole, whole.get(..whole.len() / 2).unwrap(), b"not a picture"];
    for (name, content) in names.iter().zip(contents) {
        fs::write(folder.join(name), content).unwrap();
    }
    names
}

fn format_of(identity: u64) -> (ImageFormat, &'static str) {
    if identity.is_multiple_of(2) { (ImageFormat::Jpeg, "jpg") } else { (ImageFormat::Png, "png") }
}
