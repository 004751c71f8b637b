//! Just enough of Redis's protocol to look at a server and to set it up.

use std::{
    io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write},
    os::unix::net::UnixStream,
    path::Path,
};

use crate::place::PATIENCE;

/// What a server answers. Bytes that are no text are shown as well as they can be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Nothing,
    Number(i64),
    Text(String),
    Refused(String),
    List(Vec<Self>),
}

impl Answer {
    pub fn number(&self) -> i64 {
        let Self::Number(number) = self else { panic!("no number: {self:?}") };
        *number
    }

    pub fn text(&self) -> &str {
        let Self::Text(text) = self else { panic!("no text: {self:?}") };
        text
    }

    pub fn list(&self) -> &[Self] {
        let Self::List(list) = self else { panic!("no list: {self:?}") };
        list
    }

    pub fn texts(&self) -> Vec<String> {
        self.list().iter().map(|item| item.text().to_owned()).collect()
    }
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection(BufReader<UnixStream>);

impl Connection {
    pub(super) fn open(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Asks, and waits for the answer.
    pub(super) fn ask(&mut self, words: &[&str]) -> Result<Answer> {
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request += &format!("${}\r\n{word}\r\n", word.len());
        }
        self.0.get_mut().write_all(request.as_bytes())?;
        self.answer()
    }

    fn answer(&mut self) -> Result<Answer> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let line = line.strip_suffix("\r\n").ok_or(ErrorKind::UnexpectedEof)?;
        let (kind, rest) = line.split_at_checked(1).ok_or(ErrorKind::InvalidData)?;
        let number = || rest.parse::<i64>().map_err(|_| Error::from(ErrorKind::InvalidData));
        Ok(match kind {
            "+" => Answer::Text(rest.to_owned()),
            "-" => Answer::Refused(rest.to_owned()),
            ":" => Answer::Number(number()?),
            "$" => match usize::try_from(number()?) {
                Err(_) => Answer::Nothing,
                Ok(length) => {
                    let mut bytes = vec![0; length + 2];
                    self.0.read_exact(&mut bytes)?;
                    Answer::Text(String::from_utf8_lossy(&bytes[..length]).into_owned())
                }
            },
            "*" => match usize::try_from(number()?) {
                Err(_) => Answer::Nothing,
                Ok(length) => Answer::List((0..length).map(|_| self.answer()).collect::<Result<_>>()?),
            },
            _ => return Err(ErrorKind::InvalidData.into()),
        })
    }
}
