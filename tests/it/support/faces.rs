//! Draws labelled images from a seed, for tests that train: simple heads whose colour shows the age and whose shape
//! shows the gender, so that a small network learns both in a minute. Hair and eyes identify a person, so two images of
//! one person are more similar than those of two people.

use std::{
    fs,
    io::Cursor,
    path::{Path, PathBuf},
};

use image::{ImageFormat, Rgb, RgbImage};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Width and height of an image, in pixels.
const SIDE_PX: u32 = 80;
/// The highest age, in years.
const MAX_AGE: u8 = 90;

/// The person to draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Person {
    /// The age in years, 1 to 90; sets the head's colour, from blue over grey to red.
    pub(crate) age: u8,
    /// True for a square head, false for a round one.
    pub(crate) is_female: bool,
    /// Selects hair and eyes.
    pub(crate) identity: u64,
}

impl Person {
    /// Returns the person with a number; persons with adjacent numbers are unrelated.
    pub(crate) fn of(identity: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(identity);
        Self { age: rng.random_range(1..=MAX_AGE), is_female: rng.random(), identity }
    }

    /// Returns `female` or `male`.
    pub(crate) fn gender(self) -> &'static str {
        if self.is_female { "female" } else { "male" }
    }

    /// Draws one image; another `shot` moves the head and changes the noise.
    pub(crate) fn draw(self, shot: u64) -> RgbImage {
        let mut person = ChaCha8Rng::seed_from_u64(self.identity ^ 0x5eed);
        let hair: [u8; 3] = person.random();
        let eyes: [u8; 3] = person.random();
        let (hair_px, eye_px) = (person.random_range(4..14), person.random_range(6..13));
        let mut rng = ChaCha8Rng::seed_from_u64(shot.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ self.identity);
        let centre = i64::from(SIDE_PX / 2);
        let (at_x, at_y) = (centre + rng.random_range(-5..=5), centre + rng.random_range(-5..=5));
        let radius = rng.random_range(24..=28);
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
            let noise = rng.random_range(-10.0..10.0_f32);
            Rgb(colour.map(|channel| (channel + noise).clamp(0.0, 255.0) as u8))
        })
    }

    /// Draws and encodes one image.
    pub(crate) fn photo(self, shot: u64, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        self.draw(shot).write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }
}

/// Writes the persons `first..first + n` as a folder with UTKFace names, alternating JPEG and PNG; returns the files.
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

/// Writes the persons `0..n` as `faces/*` and a table `faces.csv`. Its columns are path, age, gender, smoker (missing
/// in every third row) and split (every fifth row is `valid`, every tenth `calibration`). Returns the table.
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

/// Adds files to a folder with UTKFace names that training must report and skip: a name with a field missing, a name
/// with a space, a truncated JPEG, and a text named like a JPEG. Returns their names.
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
