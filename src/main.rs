//! The `visage` command.

fn main() -> std::process::ExitCode {
    visage::cli::main()
}
