//! The page at `/`: who holds and who waits, in a browser. It is part of the program, and asks the server by the same protocol
//! as everybody. It does without the npm package: it has one stream to read and one question to ask, for which it would carry a
//! hundred kilobytes, and its policy would have to let WebAssembly in.

use std::sync::LazyLock;

use axum::{
    Router,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use sha2::{Digest, Sha256};

/// What the page may do: nothing that is not its own, so that a name of a lock that got into it as markup would do nothing.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A file of the page.
struct File {
    media_type: &'static str,
    text: &'static str,
    tag: String,
}

macro_rules! file {
    ($name:ident, $path:literal, $media_type:literal) => {
        static $name: LazyLock<File> = LazyLock::new(|| File::new($media_type, include_str!($path)));
    };
}

file!(INDEX, "page/index.html", "text/html; charset=utf-8");
file!(STYLE, "page/style.css", "text/css; charset=utf-8");
file!(PAGE, "page/page.js", "text/javascript; charset=utf-8");
file!(STREAM, "page/stream.js", "text/javascript; charset=utf-8");

pub(crate) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new()
        .route("/", get(async |headers: HeaderMap| INDEX.answer(&headers)))
        .route("/page/style.css", get(async |headers: HeaderMap| STYLE.answer(&headers)))
        .route("/page/page.js", get(async |headers: HeaderMap| PAGE.answer(&headers)))
        .route("/page/stream.js", get(async |headers: HeaderMap| STREAM.answer(&headers)))
}

impl File {
    fn new(media_type: &'static str, text: &'static str) -> Self {
        let hash = Sha256::digest(text);
        let hex: String = hash[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        Self { media_type, text, tag: format!("\"{hex}\"") }
    }

    fn answer(&self, asked: &HeaderMap) -> Response {
        let headers = [
            (header::CONTENT_TYPE, self.media_type),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
            // Asked for again each time, so that after an upgrade the files fit together.
            (header::CACHE_CONTROL, "no-cache"),
            (header::ETAG, &self.tag),
        ];
        if self.is_known(asked) {
            (StatusCode::NOT_MODIFIED, headers).into_response()
        } else {
            (headers, self.text).into_response()
        }
    }

    fn is_known(&self, asked: &HeaderMap) -> bool {
        let known = asked.get_all(header::IF_NONE_MATCH).iter().filter_map(|tags| tags.to_str().ok());
        known.flat_map(|tags| tags.split(',')).any(|tag| {
            let tag = tag.trim();
            tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == self.tag
        })
    }
}
