//! `windlass man` and `windlass completions`: both are made from the command line's own description.

use clap::{Command, CommandFactory};
use clap_mangen::Man;

use crate::{
    args::{self, Cli, Completions},
    exit::{Exit, Failure, USAGE},
    text::print,
};

pub(crate) fn completions(args: &Completions) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "windlass", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::DONE)
}

pub(crate) fn man(args: &args::Man) -> Result<Exit, Failure> {
    let mut whole = Cli::command();
    whole.build();
    let command = match &args.command {
        None => whole,
        Some(wanted) => match whole.find_subcommand(wanted) {
            Some(command) => command.clone(),
            None => {
                return Err(Failure::new(
                    USAGE,
                    format!("there is no command {wanted}: see windlass --help"),
                ));
            }
        },
    };
    print(&page(command).map_err(|error| Failure::of_stdout(&error))?)?;
    Ok(Exit::DONE)
}

fn page(command: Command) -> std::io::Result<String> {
    let more = command.get_after_long_help().or(command.get_after_help()).map(ToString::to_string);
    let has_commands = command.has_subcommands();
    let version = concat!("windlass ", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command).manual("Windlass").source(version);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if has_commands {
        man.render_subcommands_section(&mut page)?;
    }
    let mut page = String::from_utf8_lossy(&page).into_owned();
    for section in more.iter().flat_map(|more| more.split("\n\n")) {
        let (title, lines) = section.split_once('\n').unwrap_or((section, ""));
        let body: String = lines
            .lines()
            .map(|line| format!("{}\n", roff(line.strip_prefix("  ").unwrap_or(line))))
            .collect();
        page.push_str(&format!(
            ".SH {}\n.nf\n{body}.fi\n",
            roff(&title.trim_end_matches(':').to_uppercase())
        ));
    }
    Ok(page)
}

/// A line of text that roff(7) shall print as it is.
fn roff(line: &str) -> String {
    let escaped = line.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq");
    // A dot at the beginning would make it a request.
    if escaped.starts_with('.') { format!("\\&{escaped}") } else { escaped }
}
