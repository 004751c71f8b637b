//! `windlass token`: tokens for a lock server.

use std::io::IsTerminal;

use windlass::protocol::millis;
use windlass_server::token::{Claims, JwtKey, Pattern, Right, Rights, Scope, hashed, mint, secret};

use crate::{
    args::Token,
    exit::{Exit, Failure, USAGE},
    text::{complain, print},
};

pub(crate) fn token(token: &Token) -> Result<Exit, Failure> {
    let rights: Rights = token.rights.parse()?;
    for pattern in &token.locks {
        pattern.parse::<Pattern>()?;
    }
    match &token.key {
        Some(path) => print(&format!("{}\n", signed(token, rights, &JwtKey::of_file(path)?)?))?,
        None => line(token)?,
    }
    Ok(Exit::DONE)
}

fn signed(token: &Token, rights: Rights, key: &JwtKey) -> Result<String, Failure> {
    let rights: Vec<Right> = rights.each().collect();
    let mut claims = Claims::new(&token.name, token.lives);
    claims.aud.clone_from(&token.audience);
    claims.locks =
        token.locks.iter().map(|names| Scope { names: names.clone(), rights: rights.clone() }).collect();
    claims.most_claims = token.most_claims;
    claims.longest_ttl_ms = token.longest_ttl.map(millis);
    Ok(mint(key, &claims)?)
}

/// The line for the server's file on stdout, and the token itself, which is nowhere else, on stderr.
fn line(token: &Token) -> Result<(), Failure> {
    if token.name.contains(char::is_whitespace) {
        return Err(Failure::new(
            USAGE,
            "the name is a word of the line: leave out the spaces, or give a --key",
        ));
    }
    let secret = secret()?;
    let hash = hashed(&secret);
    let mut line = format!("{hash} {} {} {}", token.name, token.rights, token.locks.join(" "));
    if let Some(most) = token.most_claims {
        line.push_str(&format!(" claims={most}"));
    }
    if let Some(ttl) = token.longest_ttl {
        line.push_str(&format!(" ttl={}ms", ttl.as_millis()));
    }
    print(&format!("{line}\n"))?;
    if std::io::stdout().is_terminal() {
        complain("the line above is for the server's file of tokens");
    }
    complain(&format!("the token of {}, which is not kept anywhere: {secret}", token.name));
    Ok(())
}
