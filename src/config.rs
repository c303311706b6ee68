//! The settings of a server. They come from one documented file, the environment and flags; later ones win.
//!
//! An unknown key is an error that names its place. [`LoadedConfig::sources`] reports where each value came from. The
//! name of an environment variable is `VISAGE_` and the key, with `__` between its levels: `VISAGE_SERVER__LISTEN`.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use figment::{
    Figment, Metadata, Profile, Provider, Source,
    providers::{Env, Format, Serialized, Toml},
    value::{Dict, Map, Value},
};
use serde::{Deserialize, Serialize};

/// The documented file with every default; `visage config --default` prints it.
pub(crate) const DOCUMENTED_DEFAULTS: &str = include_str!("../deploy/visage.toml");

/// The environment's prefix.
const ENV_PREFIX: &str = "VISAGE_";

/// Every setting of a server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// The folder of all data.
    pub data_dir: PathBuf,
    /// The gRPC server.
    pub server: ServerConfig,
    /// Image decoding.
    pub images: ImagesConfig,
    /// Face reading.
    pub faces: FacesConfig,
    /// Published models.
    pub models: ModelsConfig,
    /// Inference.
    pub serving: ServingConfig,
    /// Training runs.
    pub training: TrainingConfig,
    /// Collections of faces.
    pub similarity: SimilarityConfig,
    /// The store.
    pub store: StoreConfig,
    /// List pages.
    pub pages: PagesConfig,
    /// Logs.
    pub log: LogConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("visage-data"),
            server: ServerConfig::default(),
            images: ImagesConfig::default(),
            faces: FacesConfig::default(),
            models: ModelsConfig::default(),
            serving: ServingConfig::default(),
            training: TrainingConfig::default(),
            similarity: SimilarityConfig::default(),
            store: StoreConfig::default(),
            pages: PagesConfig::default(),
            log: LogConfig::default(),
        }
    }
}

/// The gRPC server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ServerConfig {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The largest accepted message, in bytes.
    pub max_message_bytes: usize,
    /// Maximum number of calls in progress of each kind: unary calls, request streams, watches.
    pub max_concurrent_requests: usize,
    /// The deadline of unary calls that have none, in milliseconds.
    pub default_deadline_ms: u64,
    /// The longest deadline, in milliseconds; longer ones are shortened to it.
    pub max_deadline_ms: u64,
    /// Maximum number of requests of one stream in progress.
    pub stream_window: usize,
    /// The time between HTTP/2 pings, in seconds.
    pub keepalive_s: u64,
    /// The age at which a connection is closed gracefully, in seconds, so that load balancers can rebalance.
    pub max_connection_age_s: u64,
    /// How long a stopping server waits for calls in progress, in seconds.
    pub drain_timeout_s: u64,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 50_051)),
            max_message_bytes: 16 << 20,
            max_concurrent_requests: 256,
            default_deadline_ms: 30_000,
            max_deadline_ms: 300_000,
            stream_window: 8,
            keepalive_s: 30,
            max_connection_age_s: 3_600,
            drain_timeout_s: 10,
        }
    }
}

/// Image decoding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ImagesConfig {
    /// The most pixels (width times height) of an image that is decoded.
    pub max_pixels: u64,
    /// Decoding threads; 0: the number of cores.
    pub decode_threads: usize,
    /// Maximum number of photos waiting for a decoding thread.
    pub decode_queue: usize,
}

impl Default for ImagesConfig {
    fn default() -> Self {
        Self { max_pixels: 50_000_000, decode_threads: 0, decode_queue: 256 }
    }
}

/// Face reading: how many faces of a photo, and the bounds of the thresholds that a request may set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct FacesConfig {
    /// Maximum number of faces read per photo; the largest are read.
    pub max_faces: usize,
    /// In pixels. This pair and each pair below is the lowest and the highest value that a request may set.
    pub min_face_px: [f64; 2],
    /// A probability.
    pub min_detection: [f64; 2],
    /// A ratio of variances.
    pub min_sharpness: [f64; 2],
    /// From 0 to 1.
    pub min_brightness: [f64; 2],
    /// From 0 to 1.
    pub max_brightness: [f64; 2],
    /// From 0 to 0.5.
    pub min_contrast: [f64; 2],
    /// In degrees.
    pub max_yaw_degrees: [f64; 2],
    /// In degrees.
    pub max_pitch_degrees: [f64; 2],
    /// A correlation.
    pub min_symmetry: [f64; 2],
    /// A fraction.
    pub min_visible: [f64; 2],
    /// As a fraction of the face's side.
    pub max_misfit: [f64; 2],
    /// In the head's unit.
    pub max_spread: [f64; 2],
}

impl Default for FacesConfig {
    fn default() -> Self {
        Self {
            max_faces: 32,
            min_face_px: [0.0, 1_000.0],
            min_detection: [0.0, 1.0],
            min_sharpness: [0.0, 10.0],
            min_brightness: [0.0, 1.0],
            max_brightness: [0.0, 1.0],
            min_contrast: [0.0, 0.5],
            max_yaw_degrees: [0.0, 90.0],
            max_pitch_degrees: [0.0, 90.0],
            min_symmetry: [-1.0, 1.0],
            min_visible: [0.0, 1.0],
            max_misfit: [0.0, 1.0],
            max_spread: [0.0, 100.0],
        }
    }
}

/// Published models.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ModelsConfig {
    /// A folder of published weights. Models not yet in the store are registered at start-up. Empty: none.
    pub published_dir: PathBuf,
}

/// Inference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ServingConfig {
    /// auto, cpu or cuda:N.
    pub device: String,
    /// Threads of a forward pass; 0: the number of cores.
    pub threads: usize,
    /// Maximum number of images waiting for a version.
    pub queue_capacity: usize,
    /// Maximum memory of the images waiting for a version, in bytes.
    pub queue_bytes: usize,
    /// Maximum number of images in one forward pass, 1 to 32.
    pub max_batch: usize,
    /// Maximum memory of loaded weights, in bytes.
    pub memory_budget_bytes: u64,
    /// The model of calls that name none; empty: models/face, or the only model whose champion has heads.
    pub default_model: String,
}

impl Default for ServingConfig {
    fn default() -> Self {
        Self {
            device: "auto".to_owned(),
            threads: 0,
            queue_capacity: 128,
            queue_bytes: 512 << 20,
            max_batch: 32,
            memory_budget_bytes: 4 << 30,
            default_model: String::new(),
        }
    }
}

/// Training runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct TrainingConfig {
    /// The folders that may contain training data and weights; empty: calls may name no path.
    pub roots: Vec<PathBuf>,
    /// Maximum number of runs that train at once.
    pub max_concurrent_runs: usize,
    /// Maximum number of runs that wait.
    pub max_queued_runs: usize,
    /// Threads of a training process; 0: the number of cores.
    pub threads: u32,
}

impl Default for TrainingConfig {
    fn default() -> Self {
        Self { roots: Vec::new(), max_concurrent_runs: 1, max_queued_runs: 16, threads: 0 }
    }
}

/// Collections of faces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct SimilarityConfig {
    /// The largest `k` of a query.
    pub max_k: usize,
    /// Collections with up to this many faces are searched exactly.
    pub exact_up_to: usize,
}

impl Default for SimilarityConfig {
    fn default() -> Self {
        Self { max_k: 1_000, exact_up_to: 5_000 }
    }
}

/// The store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct StoreConfig {
    /// The size of the engine's page cache, in bytes; the engine may exceed it.
    pub cache_bytes: u64,
    /// Free bytes that writes leave on the disk; below it, only reads and deletions are served.
    pub reserve_bytes: u64,
    /// The file of the store key, without which no face can be read; empty: `store.key` in the data folder.
    pub key_file: PathBuf,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self { cache_bytes: 64 << 20, reserve_bytes: 256 << 20, key_file: PathBuf::new() }
    }
}

/// List pages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct PagesConfig {
    /// The page size if the caller sends none.
    pub default_size: usize,
    /// The largest page size.
    pub max_size: usize,
}

impl Default for PagesConfig {
    fn default() -> Self {
        Self { default_size: 50, max_size: 1_000 }
    }
}

/// Logging, to standard error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LogConfig {
    /// The format of a line: text or json.
    pub format: LogFormat,
    /// The events to log, in the syntax of `tracing`: a level, or target=level pairs.
    pub filter: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info".to_owned() }
    }
}

/// The format of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file is missing or cannot be read.
    #[error("{}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A key is unknown or a value has the wrong type; the text names the key and its place.
    #[error("the configuration is refused: {}", without_profile(.0))]
    Refused(Box<figment::Error>),
    /// A path is not UTF-8. Stored as text, it would name another path.
    #[error("{given_as}: {} is not UTF-8; rename it, or use a link with a UTF-8 name", path.display())]
    NotUtf8 {
        /// The key or the environment variable.
        given_as: String,
        /// The path as given.
        path: PathBuf,
    },
    /// A value is out of its range.
    #[error("the configuration is refused: {key} {rule}")]
    OutOfRange {
        /// The key.
        key: &'static str,
        /// What is allowed.
        rule: &'static str,
    },
}

/// figment's message without its profile, because no file contains one.
fn without_profile(error: &figment::Error) -> String {
    error.to_string().replace("\"default.", "\"")
}

/// A setting and where it came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Setting {
    /// The key, such as `server.listen`.
    pub key: String,
    /// The value in the file's syntax.
    pub value: String,
    /// `default`, the file's path, the variable's name, or `flag`.
    pub source: String,
}

/// The given flags: keys such as `server.listen`, and their values.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flags {
    values: Vec<(String, Value)>,
    /// The first path that is not UTF-8, with its key.
    not_utf8: Option<(String, PathBuf)>,
}

impl Flags {
    /// Adds a flag's value, if the flag was given.
    #[must_use]
    pub(crate) fn with<T: Into<Value>>(mut self, key: &str, value: Option<T>) -> Self {
        self.values.extend(value.map(|value| (key.to_owned(), value.into())));
        self
    }

    /// As [`Flags::with`], for a path. If it is not UTF-8, loading the configuration fails.
    #[must_use]
    pub(crate) fn with_path(mut self, key: &str, path: Option<&Path>) -> Self {
        let text = path.and_then(|path| self.text(key, path));
        self.with(key, text)
    }

    /// As [`Flags::with_path`], for a list; an empty list means that the flag was not given.
    #[must_use]
    pub(crate) fn with_paths(mut self, key: &str, paths: &[PathBuf]) -> Self {
        let texts: Vec<String> = paths.iter().filter_map(|path| self.text(key, path)).collect();
        self.with(key, (!texts.is_empty()).then_some(texts))
    }

    fn text(&mut self, key: &str, path: &Path) -> Option<String> {
        if path.to_str().is_none() {
            self.not_utf8.get_or_insert_with(|| (key.to_owned(), path.to_owned()));
        }
        path.to_str().map(str::to_owned)
    }
}

/// Returns true if a variable (its name without the prefix) sets a key of a section or the data folder. Variables of
/// the program's tools and tests have the same prefix.
fn is_setting(key: &str) -> bool {
    key.contains("__") || key.eq_ignore_ascii_case("data_dir")
}

/// Strips the prefix, in either case, from a variable's name.
fn without_prefix(variable: &str) -> Option<&str> {
    let (prefix, key) = variable.split_at_checked(ENV_PREFIX.len())?;
    prefix.eq_ignore_ascii_case(ENV_PREFIX).then_some(key)
}

/// A flag as a source of configuration.
struct Flag(String, Value);

impl Provider for Flag {
    fn metadata(&self) -> Metadata {
        Metadata::named("flag")
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let nested = figment::util::nest(&self.0, self.1.clone());
        Ok(Profile::Default.collect(nested.into_dict().unwrap_or_default()))
    }
}

/// A configuration and its sources.
pub(crate) struct LoadedConfig {
    /// The effective values.
    pub config: Config,
    figment: Figment,
}

impl Config {
    /// Reads the file, the environment and the flags (later ones win), and checks every value.
    ///
    /// # Errors
    /// [`ConfigError`], which names the key and its place.
    pub(crate) fn load(file: Option<&Path>, flags: Flags) -> Result<LoadedConfig, ConfigError> {
        // figment would replace the invalid bytes, and so name another path.
        let variable = || {
            std::env::vars_os()
                .find(|(name, value)| {
                    name.to_str().and_then(without_prefix).is_some_and(is_setting) && value.to_str().is_none()
                })
                .map(|(name, value)| (name.to_string_lossy().into_owned(), value.into()))
        };
        if let Some((given_as, path)) = flags.not_utf8.clone().or_else(variable) {
            return Err(ConfigError::NotUtf8 { given_as, path });
        }
        let mut figment = Figment::from(Serialized::defaults(Self::default()));
        if let Some(path) = file {
            // figment treats a missing file as empty; but a file that the caller named must exist.
            std::fs::metadata(path).map_err(|source| ConfigError::File { path: path.to_owned(), source })?;
            figment = figment.merge(Toml::file_exact(path));
        }
        figment = figment.merge(Env::prefixed(ENV_PREFIX).filter(|key| is_setting(key.as_str())).split("__"));
        for (key, value) in flags.values {
            figment = figment.merge(Flag(key, value));
        }
        let config: Self = figment.extract().map_err(|e| ConfigError::Refused(Box::new(e)))?;
        config.check()?;
        Ok(LoadedConfig { config, figment })
    }

    fn check(&self) -> Result<(), ConfigError> {
        let rules = [
            ("server.max_message_bytes", self.server.max_message_bytes >= 1 << 10, "must be at least 1024"),
            ("server.max_concurrent_requests", self.server.max_concurrent_requests >= 1, "must be at least 1"),
            ("server.default_deadline_ms", self.server.default_deadline_ms >= 1, "must be at least 1"),
            (
                "server.max_deadline_ms",
                self.server.max_deadline_ms >= self.server.default_deadline_ms,
                "must not be below server.default_deadline_ms",
            ),
            ("server.stream_window", (1..=256).contains(&self.server.stream_window), "must be 1 to 256"),
            ("server.keepalive_s", self.server.keepalive_s >= 1, "must be at least 1"),
            ("server.max_connection_age_s", self.server.max_connection_age_s >= 1, "must be at least 1"),
            ("images.max_pixels", (1..=1_000_000_000).contains(&self.images.max_pixels), "must be 1 to 10^9"),
            ("images.decode_queue", self.images.decode_queue >= 1, "must be at least 1"),
            ("faces.max_faces", (1..=512).contains(&self.faces.max_faces), "must be 1 to 512"),
            ("serving.queue_capacity", self.serving.queue_capacity >= 1, "must be at least 1"),
            ("serving.max_batch", (1..=32).contains(&self.serving.max_batch), "must be 1 to 32"),
            ("training.max_concurrent_runs", self.training.max_concurrent_runs >= 1, "must be at least 1"),
            ("similarity.max_k", (1..=100_000).contains(&self.similarity.max_k), "must be 1 to 100000"),
            ("pages.default_size", self.pages.default_size >= 1, "must be at least 1"),
            ("pages.max_size", self.pages.max_size >= self.pages.default_size, "must not be below pages.default_size"),
        ];
        let faces = &self.faces;
        let bounds = [
            ("faces.min_face_px", faces.min_face_px),
            ("faces.min_detection", faces.min_detection),
            ("faces.min_sharpness", faces.min_sharpness),
            ("faces.min_brightness", faces.min_brightness),
            ("faces.max_brightness", faces.max_brightness),
            ("faces.min_contrast", faces.min_contrast),
            ("faces.max_yaw_degrees", faces.max_yaw_degrees),
            ("faces.max_pitch_degrees", faces.max_pitch_degrees),
            ("faces.min_symmetry", faces.min_symmetry),
            ("faces.min_visible", faces.min_visible),
            ("faces.max_misfit", faces.max_misfit),
            ("faces.max_spread", faces.max_spread),
        ];
        let ordered =
            |(key, [least, most]): (_, [f64; 2])| (key, least <= most, "must be the lowest, then the highest value");
        let rules = rules.into_iter().chain(bounds.into_iter().map(ordered));
        match rules.into_iter().find(|(_, holds, _)| !holds) {
            Some((key, _, rule)) => Err(ConfigError::OutOfRange { key, rule }),
            None => Ok(()),
        }
    }
}

impl LoadedConfig {
    /// Returns every setting with its effective value and its source.
    ///
    /// # Errors
    /// When a value cannot be shown, which is a bug.
    pub(crate) fn sources(&self) -> Result<Vec<Setting>, ConfigError> {
        let values: Dict = self.figment.extract().map_err(|e| ConfigError::Refused(Box::new(e)))?;
        let mut settings = Vec::new();
        self.walk("", &values, &mut settings);
        Ok(settings)
    }

    fn walk(&self, prefix: &str, values: &Dict, settings: &mut Vec<Setting>) {
        for (name, value) in values {
            let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            if let Value::Dict(_, inner) = value {
                self.walk(&key, inner, settings);
                continue;
            }
            let source = self.figment.find_metadata(&key).map_or_else(|| "default".to_owned(), |m| source(m, &key));
            let value = serde_json::to_string(value).unwrap_or_default();
            settings.push(Setting { key, value, source });
        }
    }
}

fn source(metadata: &Metadata, key: &str) -> String {
    match (&metadata.source, metadata.name.as_ref()) {
        (Some(Source::File(path)), _) => path.display().to_string(),
        (_, "flag") => "flag".to_owned(),
        (_, name) if name.contains("environment") => format!("{ENV_PREFIX}{}", key.to_uppercase().replace('.', "__")),
        _ => "default".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use std::fs;

    use super::*;

    fn load(text: &str, flags: Flags) -> Result<LoadedConfig, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("visage.toml");
        fs::write(&file, text).unwrap();
        Config::load(Some(&file), flags)
    }

    #[test]
    fn the_documented_file_is_the_defaults() {
        let loaded = load(DOCUMENTED_DEFAULTS, Flags::default()).unwrap();
        assert_eq!(loaded.config, Config::default());
        for setting in loaded.sources().unwrap() {
            assert!(setting.source.ends_with("visage.toml"), "{} is not in the documented file", setting.key);
        }
    }

    #[test]
    fn flags_win_over_the_file_and_each_value_knows_its_source() {
        let flags = Flags::default().with("server.listen", Some("127.0.0.1:7")).with("data_dir", None::<String>);
        let loaded = load("[server]\nlisten = \"127.0.0.1:9\"\nstream_window = 3\n", flags).unwrap();
        assert_eq!(loaded.config.server.listen.port(), 7);
        let sources = loaded.sources().unwrap();
        let of = |key: &str| sources.iter().find(|s| s.key == key).unwrap().source.clone();
        assert_eq!(of("server.listen"), "flag");
        assert!(of("server.stream_window").ends_with("visage.toml"));
        assert_eq!(of("images.max_pixels"), "default");
    }

    #[test]
    fn unknown_keys_and_values_out_of_range_are_named() {
        let unknown = load("[server]\nlisten_on = 1\n", Flags::default()).err().unwrap().to_string();
        assert!(unknown.contains("listen_on") && unknown.contains("visage.toml"), "{unknown}");
        let range = load("[serving]\nmax_batch = 33\n", Flags::default()).err().unwrap().to_string();
        assert!(range.contains("serving.max_batch"), "{range}");
        let wrong = load("[server]\nlisten = \"nowhere\"\n", Flags::default()).err().unwrap().to_string();
        assert!(wrong.contains("server.listen"), "{wrong}");
        let odd = PathBuf::from(std::ffi::OsStr::from_bytes(b"caf\xe9"));
        for flags in [
            Flags::default().with_path("data_dir", Some(&odd)),
            Flags::default().with_paths("training.roots", &[PathBuf::from("a"), odd.clone()]),
        ] {
            let refused = load("", flags).err().unwrap().to_string();
            assert!(refused.contains("not UTF-8") && refused.contains("caf"), "{refused}");
        }
        let missing = Config::load(Some(Path::new("/nonexistent/visage.toml")), Flags::default());
        assert!(matches!(missing, Err(ConfigError::File { .. })));
    }
}
