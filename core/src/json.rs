//! JSON as a tree, read and written: enough for the protocol, and a tenth of the code that a derived reader of each message
//! is. In a browser that code is downloaded.

use std::fmt::Write;

/// The deepest nesting that is read.
const DEEPEST: usize = 32;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    /// All numbers of the protocol are whole; another one is `Null`.
    Whole(u64),
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    /// Reads a value; `None`: it is none.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let mut reader = Reader { text: std::str::from_utf8(text).ok()?, at: 0 };
        let value = reader.value(DEEPEST)?;
        reader.space();
        (reader.at == reader.text.len()).then_some(value)
    }

    /// A field of an object; `Null` where it is absent.
    pub(crate) fn get(&self, key: &str) -> &Self {
        self.fields().iter().find(|(found, _)| found == key).map_or(&Self::Null, |(_, value)| value)
    }

    pub(crate) fn fields(&self) -> &[(String, Self)] {
        if let Self::Object(fields) = self { fields } else { &[] }
    }

    pub(crate) fn list(&self) -> Option<&[Self]> {
        if let Self::List(list) = self { Some(list) } else { None }
    }

    pub(crate) fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    pub(crate) fn whole(&self) -> Option<u64> {
        if let Self::Whole(number) = self { Some(*number) } else { None }
    }

    /// It as text.
    pub(crate) fn to_text(&self) -> String {
        let mut text = String::new();
        self.write(&mut text);
        text
    }

    /// Writes it as text.
    pub(crate) fn write(&self, out: &mut String) {
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(is) => out.push_str(if *is { "true" } else { "false" }),
            // Writing to a String cannot fail, here and below.
            Self::Whole(number) => drop(write!(out, "{number}")),
            Self::Text(text) => quote(text, out),
            Self::List(list) => {
                out.push('[');
                for (at, value) in list.iter().enumerate() {
                    if at > 0 {
                        out.push(',');
                    }
                    value.write(out);
                }
                out.push(']');
            }
            Self::Object(fields) => {
                out.push('{');
                for (at, (key, value)) in fields.iter().enumerate() {
                    if at > 0 {
                        out.push(',');
                    }
                    quote(key, out);
                    out.push(':');
                    value.write(out);
                }
                out.push('}');
            }
        }
    }
}

fn quote(text: &str, out: &mut String) {
    out.push('"');
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\0'..='\x1f' => drop(write!(out, "\\u{:04x}", letter as u32)),
            _ => out.push(letter),
        }
    }
    out.push('"');
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn value(&mut self, depth: usize) -> Option<Json> {
        let depth = depth.checked_sub(1)?;
        self.space();
        match self.peek()? {
            b'{' => {
                let mut fields = Vec::new();
                self.each(b'}', |reader| {
                    reader.space();
                    let key = reader.string()?;
                    reader.space();
                    reader.eat(":")?;
                    fields.push((key, reader.value(depth)?));
                    Some(())
                })?;
                Some(Json::Object(fields))
            }
            b'[' => {
                let mut list = Vec::new();
                self.each(b']', |reader| {
                    list.push(reader.value(depth)?);
                    Some(())
                })?;
                Some(Json::List(list))
            }
            b'"' => self.string().map(Json::Text),
            b't' => self.eat("true").map(|()| Json::Bool(true)),
            b'f' => self.eat("false").map(|()| Json::Bool(false)),
            b'n' => self.eat("null").map(|()| Json::Null),
            _ => self.number(),
        }
    }

    /// The items between here and `end`, with commas between them.
    fn each(&mut self, end: u8, mut item: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.at += 1;
        self.space();
        if self.peek()? == end {
            self.at += 1;
            return Some(());
        }
        loop {
            item(self)?;
            self.space();
            let next = self.peek()?;
            self.at += 1;
            if next == end {
                return Some(());
            }
            if next != b',' {
                return None;
            }
        }
    }

    fn number(&mut self) -> Option<Json> {
        let is_of_number = |byte: &u8| byte.is_ascii_digit() || b"+-.eE".contains(byte);
        let length = self.rest().iter().take_while(|byte| is_of_number(byte)).count();
        let digits = self.text.get(self.at..self.at + length)?;
        if !digits.starts_with(|first: char| first == '-' || first.is_ascii_digit()) {
            return None;
        }
        self.at += length;
        Some(digits.parse().map_or(Json::Null, Json::Whole))
    }

    fn string(&mut self) -> Option<String> {
        self.eat("\"")?;
        let mut text = String::new();
        loop {
            let plain =
                self.rest().iter().take_while(|byte| !matches!(byte, b'"' | b'\\' | 0..=0x1f)).count();
            text.push_str(self.text.get(self.at..self.at + plain)?);
            self.at += plain + 1;
            match self.text.as_bytes().get(self.at - 1)? {
                b'"' => return Some(text),
                b'\\' => text.push(self.escaped()?),
                _ => return None,
            }
        }
    }

    fn escaped(&mut self) -> Option<char> {
        self.at += 1;
        Some(match self.text.as_bytes().get(self.at - 1)? {
            b'n' => '\n',
            b't' => '\t',
            b'r' => '\r',
            b'b' => '\x08',
            b'f' => '\x0c',
            b'u' => {
                let unit = self.unit()?;
                if !(0xd800..0xdc00).contains(&unit) {
                    return char::from_u32(unit);
                }
                self.eat("\\u")?;
                let low = self.unit()?.checked_sub(0xdc00).filter(|low| *low < 0x400)?;
                char::from_u32(0x10000 + ((unit - 0xd800) << 10) + low)?
            }
            same @ (b'"' | b'\\' | b'/') => char::from(*same),
            _ => return None,
        })
    }

    /// Four hexadecimal digits.
    fn unit(&mut self) -> Option<u32> {
        let digits = self.text.get(self.at..self.at + 4)?;
        self.at += 4;
        digits.bytes().try_fold(0, |unit, digit| Some(unit * 16 + char::from(digit).to_digit(16)?))
    }

    fn eat(&mut self, word: &str) -> Option<()> {
        self.rest().starts_with(word.as_bytes()).then(|| self.at += word.len())
    }

    fn space(&mut self) {
        self.at += self.rest().iter().take_while(|byte| b" \t\r\n".contains(byte)).count();
    }

    fn peek(&self) -> Option<u8> {
        self.rest().first().copied()
    }

    fn rest(&self) -> &[u8] {
        self.text.as_bytes().get(self.at..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_json() -> impl Strategy<Value = Json> {
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::Bool),
            any::<u64>().prop_map(Json::Whole),
            any::<String>().prop_map(Json::Text),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Json::List),
                prop::collection::btree_map(any::<String>(), inner, 0..6)
                    .prop_map(|fields| Json::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// What is written is read again, here and by another reader, whichever way that one writes it.
        #[test]
        fn what_is_written_is_read(json in any_json()) {
            let mut text = String::new();
            json.write(&mut text);
            prop_assert_eq!(Json::parse(text.as_bytes()), Some(json.clone()));
            let other: serde_json::Value = serde_json::from_str(&text).unwrap();
            for text in [other.to_string(), serde_json::to_string_pretty(&other).unwrap()] {
                prop_assert_eq!(Json::parse(text.as_bytes()), Some(json.clone()));
            }
        }

        /// What the other reader refuses is refused, and nothing panics. Without digits: numbers are read more loosely.
        #[test]
        fn nothing_else_is_read(text in "[\\[\\]{}\",:\\\\udbcntrue \n]{0,24}") {
            if Json::parse(text.as_bytes()).is_some() {
                prop_assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{}", text);
            }
        }
    }

    #[test]
    fn escapes_and_odd_numbers() {
        let read = |text: &str| Json::parse(text.as_bytes());
        assert_eq!(read(r#""\ud83d\udd12\/\b\f""#), Some(Json::Text("\u{1f512}/\x08\x0c".into())));
        assert_eq!(read("[1.5, -1, 18446744073709551616]"), Some(Json::List(vec![Json::Null; 3])));
        for wrong in
            ["", "[", "[1,]", "{\"a\"}", r#""\ud83d""#, r#""\ud83dA""#, "\"\n\"", "tru", "1 2", "\"\\u+041\""]
        {
            assert_eq!(read(wrong), None, "{wrong}");
        }
        let deep = "[".repeat(100_000);
        assert_eq!(read(&deep), None, "no deeper than the stack");
    }
}
