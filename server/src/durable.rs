//! What a server remembers over a stop, so that no lock is given twice (rule R9).
//!
//! ```text
//! DIR/lock         locked with flock(2) while a server uses the directory
//! DIR/state.json   epoch, fencing tokens reserved, longest TTL of a claim, key, and whether the last stop was a clean one
//! DIR/locks.json   after a clean stop: all claims
//! ```
//!
//! Nothing is written for a single lock. Before a token, or a TTL longer than all before, is used, what it takes to be safe
//! after a crash is on the disk: the upper end of a block of tokens, and the longest TTL.
//!
//! - **The longest TTL** becomes shorter again: what is written down is that of the claims that there are, and of those that
//!   were asked for a short while ago and may be granted just now ([`Durable::no_longer`]). Else one claim for an hour would
//!   make each grace after it an hour long.
//! - **A clean stop** writes the claims and then says so. The next start takes all of them up, holders with their tokens and
//!   all of their TTL, waiters in their order.
//! - **Any other end** (kill -9, power cut) leaves `clean: false`. The next start is a new epoch: for the longest TTL it grants
//!   nothing, in its *grace*. A holder that renews then shows the proof that came with its grant, a MAC over all that
//!   was granted, and has its lock on; whoever does not has lost it by the end of the grace, at the latest. A claim that a
//!   holder gave up for lost it does not renew any more, so none is revived that was freed before (the "edge
//!   conditions" of RFC 7530, section 9.6); of two proofs that conflict the greater token counts.
//! - **A server that does not get so far as to serve** (its address is taken, its certificate damaged) writes nothing: what the
//!   last one left stays for the next.
//! - **A crash between two writes** finds the older file, because each is written beside it and renamed. `clean` is
//!   taken back before anything is granted, so old claims are never taken up twice.
//! - **The disk is full or broken**: what needs a write is refused with an error that says so; all else goes on.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use windlass::{DEFAULT_TTL, Error, ErrorKind, MIN_TTL, Result, protocol::millis, table::Kept};

/// How many tokens are reserved at a time: for hours of grants as fast as they can be, and still few of the 2^53 that
/// JavaScript can count.
const BLOCK: u64 = 1 << 32;
const VERSION: u32 = 1;
const STATE: &str = "state.json";
const LOCKS: &str = "locks.json";

/// The memory of a server, for as long as it runs.
pub(crate) struct Durable {
    dir: PathBuf,
    epoch: u64,
    /// Ready for what is to be signed: each grant is, and must not wait for the disk.
    mac: Hmac<Sha256>,
    /// As it is on the disk, or shorter, for those who must not wait for it either.
    longest_ttl_ms: AtomicU64,
    /// The longest one that was asked for since the last look, and before it since the one before.
    asked_ms: [AtomicU64; 2],
    state: Mutex<State>,
    /// Locked.
    _lock: File,
}

#[derive(Clone, Serialize, Deserialize)]
struct State {
    version: u32,
    epoch: u64,
    tokens_up_to: u64,
    longest_ttl_ms: u64,
    key: String,
    clean: bool,
}

impl std::fmt::Debug for Durable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Durable").field("dir", &self.dir).field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

/// What the last server left behind.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The first token that was never given.
    pub(crate) first_token: u64,
    /// After a clean stop, the claims of each namespace.
    pub(crate) claims: BTreeMap<String, Vec<Kept>>,
    /// After any other end, how long nothing new may be granted.
    pub(crate) grace: Option<Duration>,
}

impl Durable {
    /// Opens the memory, which is nobody else's from now on. `random` makes the key of a new one; `clock` is the
    /// smallest token to begin with.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when another server uses it, [`ErrorKind::Storage`] when it cannot be read.
    pub(crate) fn open(dir: &Path, random: [u128; 2], clock: u64) -> Result<(Self, Found)> {
        make(dir).map_err(|e| trouble("make the directory", dir, e))?;
        let lock = lock(&dir.join("lock"))?;
        let path = dir.join(STATE);
        let before: Option<State> = read(&path)?;
        if let Some(before) = &before
            && before.version != VERSION
        {
            let message = format!(
                "{} was written by another version: use that one, or another directory",
                path.display()
            );
            return Err(Error::new(ErrorKind::Storage, message));
        }
        let clean = before.as_ref().is_none_or(|before| before.clean);
        let claims = if clean { read(&dir.join(LOCKS))?.unwrap_or_default() } else { BTreeMap::new() };
        let grace = before.as_ref().filter(|before| !before.clean);
        let grace = grace.map(|before| Duration::from_millis(before.longest_ttl_ms));
        let first_token = before.as_ref().map_or(0, |before| before.tokens_up_to).max(clock);
        let kept: u64 = claims.values().flatten().map(|kept: &Kept| kept.ttl_ms).max().unwrap_or(0);
        let state = State {
            version: VERSION,
            epoch: before.as_ref().map_or(1, |before| before.epoch + 1),
            tokens_up_to: first_token + BLOCK,
            // Claims that are taken up or shown by proof may be as long as before.
            longest_ttl_ms: kept.max(grace.map_or(0, millis)).max(millis(MIN_TTL)),
            key: before.map_or_else(|| format!("{:032x}{:032x}", random[0], random[1]), |before| before.key),
            clean: false,
        };
        // Keys of any length will do.
        #[allow(clippy::expect_used)]
        let mac = Hmac::<Sha256>::new_from_slice(state.key.as_bytes()).expect("a key of any length");
        let durable = Self {
            dir: dir.to_owned(),
            epoch: state.epoch,
            mac,
            longest_ttl_ms: state.longest_ttl_ms.into(),
            asked_ms: Default::default(),
            state: Mutex::new(state),
            _lock: lock,
        };
        Ok((durable, Found { first_token, claims, grace }))
    }

    /// Says in it that a server runs: before anything is granted.
    ///
    /// # Errors
    /// [`ErrorKind::Storage`] when it cannot be written.
    pub(crate) fn begin(&self) -> Result<()> {
        self.write_state(&self.state())?;
        // The claims are this server's from now on. If they stay they are read by nobody.
        let _ = fs::remove_file(self.dir.join(LOCKS));
        Ok(())
    }

    /// How many servers there were here, with this one.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether a claim of this TTL can be granted without a write.
    pub(crate) fn knows(&self, ttl: Duration) -> bool {
        // First it says so, and then it looks: who makes it shorter does the two the other way round, so one of them sees the
        // other.
        let asked = &self.asked_ms[0];
        if asked.load(Ordering::SeqCst) < millis(ttl) {
            asked.fetch_max(millis(ttl), Ordering::SeqCst);
        }
        millis(ttl) <= self.longest_ttl_ms.load(Ordering::SeqCst)
    }

    /// To be called now and then, outside of a grace: a server that comes after a crash need not wait for longer than for the
    /// claims that there are, whose longest TTL is looked for if need be. From a request for a claim until that is among them it
    /// may take as long as from one call to the next.
    ///
    /// # Errors
    /// [`ErrorKind::Storage`] when it cannot be written: then the longer one may stay.
    pub(crate) fn no_longer(&self, there: impl FnOnce() -> Duration) -> Result<()> {
        let [asked, before] = &self.asked_ms;
        let lately = asked.swap(0, Ordering::SeqCst);
        let asked_for = lately.max(before.swap(lately, Ordering::SeqCst)).max(millis(DEFAULT_TTL));
        // Nobody makes it longer meanwhile.
        let mut state = self.state();
        let was = state.longest_ttl_ms;
        if asked_for >= was {
            return Ok(());
        }
        let longest = asked_for.max(millis(there()));
        if longest >= was {
            return Ok(());
        }
        self.longest_ttl_ms.store(longest, Ordering::SeqCst);
        if asked.load(Ordering::SeqCst) > longest {
            self.longest_ttl_ms.store(was, Ordering::SeqCst);
            return Ok(());
        }
        let wanted = State { longest_ttl_ms: longest, ..state.clone() };
        let written = self.write_state(&wanted);
        let stays =
            || matches!(read::<State>(&self.dir.join(STATE)), Ok(Some(there)) if there.longest_ttl_ms == was);
        if written.is_err() && stays() {
            self.longest_ttl_ms.store(was, Ordering::SeqCst);
        } else {
            // Also where nobody knows what is on the disk: a longer one is written down before it is used.
            *state = wanted;
        }
        written
    }

    /// Makes sure that a server that comes after a crash waits for claims of this TTL.
    pub(crate) fn will_grant(&self, ttl: Duration) -> Result<()> {
        let mut state = self.state();
        if millis(ttl) > state.longest_ttl_ms {
            // Under the mutex: whoever wants the same waits until it is written.
            let wanted = State { longest_ttl_ms: millis(ttl), ..state.clone() };
            self.write_state(&wanted)?;
            self.longest_ttl_ms.store(wanted.longest_ttl_ms, Ordering::SeqCst);
            *state = wanted;
        }
        Ok(())
    }

    /// Reserves more tokens if more than half of the block is used; `false` if all of it is and no more can be had.
    pub(crate) fn has_tokens(&self, next: u64) -> bool {
        let mut state = self.state();
        if next + BLOCK / 2 > state.tokens_up_to {
            let wanted = State { tokens_up_to: next + BLOCK, ..state.clone() };
            match self.write_state(&wanted) {
                Ok(()) => *state = wanted,
                Err(error) => tracing::error!(%error, "no more fencing tokens can be reserved"),
            }
        }
        // Far more than are given until this is asked again.
        next + BLOCK / 16 < state.tokens_up_to
    }

    /// The end of a server whose claims these are.
    pub(crate) fn stopped(&self, claims: &BTreeMap<String, Vec<Kept>>, next_token: u64) -> Result<()> {
        write(&self.dir.join(LOCKS), claims)?;
        let mut state = self.state();
        let last = State { clean: true, tokens_up_to: next_token, ..state.clone() };
        self.write_state(&last)?;
        *state = last;
        Ok(())
    }

    /// What shows a later server that this one has granted this.
    pub(crate) fn proof(&self, namespace: &str, kept: &Kept) -> String {
        let tag = self.mac(namespace, kept).finalize().into_bytes();
        tag[..16].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Whether one of our kind has granted this.
    pub(crate) fn is_proof(&self, namespace: &str, kept: &Kept, proof: &str) -> bool {
        let tag: Option<Vec<u8>> = proof
            .as_bytes()
            .chunks(2)
            .map(|pair| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok()))
            .collect();
        let tag = tag.filter(|tag| tag.len() == 16);
        tag.is_some_and(|tag| self.mac(namespace, kept).verify_truncated_left(&tag).is_ok())
    }

    fn mac(&self, namespace: &str, kept: &Kept) -> Hmac<Sha256> {
        let mut mac = self.mac.clone();
        // Neither the owner nor the age is what a holder could gain by.
        let mode = serde_json::to_string(&kept.mode).unwrap_or_default();
        let numbers = format!("{:032x} {} {mode} {:?}", kept.claim.reveal(), kept.ttl_ms, kept.fencing_token);
        for part in [namespace, kept.name.as_str(), &numbers] {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part.as_bytes());
        }
        mac
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_state(&self, state: &State) -> Result<()> {
        write(&self.dir.join(STATE), state)
    }
}

fn lock(path: &Path) -> Result<File> {
    let file = open(path, OpenOptions::new().read(true).write(true).create(true).truncate(false));
    let file = file.map_err(|e| trouble("open", path, e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(Error::new(
            ErrorKind::Unavailable,
            format!("another server uses {}: stop it, or give this one another directory", path.display()),
        )),
        Err(fs::TryLockError::Error(e)) => Err(trouble("lock", path, e)),
    }
}

fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Option<T>> {
    let text = match fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(|e| trouble("read", path, e))?,
    };
    serde_json::from_slice(&text).map(Some).map_err(|e| {
        let path = path.display();
        let message = format!(
            "{path} is damaged: restore it, or, when all locks have been free for their TTL, remove its directory"
        );
        Error::new(ErrorKind::Storage, message).with_source(e)
    })
}

/// Writes a file so that whoever reads it finds all of it or all of the one before, also after a power cut.
fn write(path: &Path, content: &impl Serialize) -> Result<()> {
    let write = || -> io::Result<()> {
        let beside = path.with_extension("new");
        let mut file = open(&beside, OpenOptions::new().write(true).create(true).truncate(true))?;
        file.write_all(&serde_json::to_vec(content)?)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        match path.parent() {
            // The name, too.
            Some(dir) if cfg!(unix) => File::open(dir)?.sync_all(),
            _ => Ok(()),
        }
    };
    write().map_err(|e| trouble("write", path, e))
}

/// For our eyes only: claim ids and a key are in there.
fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options.open(path)
}

fn make(dir: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir)
}

fn trouble(doing: &str, path: &Path, error: io::Error) -> Error {
    Error::new(ErrorKind::Storage, format!("cannot {doing} {}: {error}", path.display())).with_source(error)
}

#[cfg(test)]
mod tests {
    use windlass::{ClaimId, Mode, Owner};

    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new() -> Self {
            use std::sync::atomic::{AtomicU32, Ordering};
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let name =
                format!("windlass-durable-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            Self(std::env::temp_dir().join(name))
        }

        /// As a server that begins to serve.
        fn open(&self) -> Result<(Durable, Found)> {
            let (durable, found) = Durable::open(&self.0, [1, 2], 1_000)?;
            durable.begin()?;
            Ok((durable, found))
        }
    }

    impl Scratch {
        fn state(&self) -> State {
            read(&self.0.join(STATE)).unwrap().unwrap()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn kept() -> Kept {
        Kept {
            name: "deploy".parse().unwrap(),
            claim: ClaimId::from_u128(7),
            mode: Mode::Exclusive,
            ttl_ms: 15_000,
            fencing_token: Some(1_005),
            owner: Owner::default(),
            for_ms: 0,
        }
    }

    #[test]
    fn a_clean_stop_keeps_claims_and_waits_for_nobody() {
        let dir = Scratch::new();
        let (durable, found) = dir.open().unwrap();
        assert_eq!((found.first_token, found.grace, found.claims.len()), (1_000, None, 0));
        let claims = BTreeMap::from([("team-a".to_owned(), vec![kept()])]);
        durable.stopped(&claims, 1_006).unwrap();
        drop(durable);
        let (durable, found) = dir.open().unwrap();
        assert_eq!((found.first_token, found.grace), (1_006, None));
        assert_eq!(found.claims, claims);
        assert!(durable.knows(Duration::from_secs(15)), "what is taken up counts");
        drop(durable);
        assert!(dir.open().unwrap().1.claims.is_empty(), "taken up once");
    }

    #[test]
    fn any_other_end_is_followed_by_a_grace_of_the_longest_ttl() {
        let dir = Scratch::new();
        let (durable, _) = dir.open().unwrap();
        assert!(durable.knows(MIN_TTL) && !durable.knows(Duration::from_secs(15)));
        durable.will_grant(Duration::from_secs(15)).unwrap();
        durable.will_grant(Duration::from_secs(2)).unwrap();
        drop(durable);
        for _ in 0..2 {
            let (_, found) = dir.open().unwrap();
            assert_eq!(found.grace, Some(Duration::from_secs(15)), "also after a crash in the grace");
            assert!(
                found.first_token > 1_000 + BLOCK / 2,
                "tokens that may have been given are not given again"
            );
        }
    }

    #[test]
    fn the_grace_is_for_the_claims_that_there_are() {
        const LONG: Duration = Duration::from_secs(3600);
        let dir = Scratch::new();
        let (durable, _) = dir.open().unwrap();
        let grants = || durable.knows(LONG) || durable.will_grant(LONG).is_ok();
        let grace = || dir.state().longest_ttl_ms;
        let look = |there| durable.no_longer(|| there).unwrap();
        assert!(grants());
        look(Duration::ZERO);
        look(Duration::ZERO);
        assert_eq!(grace(), millis(LONG), "it may be granted only now");
        look(LONG);
        assert_eq!(grace(), millis(LONG), "it is there");
        look(Duration::from_secs(20));
        assert_eq!(grace(), 20_000);
        assert!(!durable.knows(LONG), "it has to be written down again");
        durable.will_grant(LONG).unwrap();
        // Asked for while the look is made.
        look(Duration::ZERO);
        look(Duration::ZERO);
        durable
            .no_longer(|| {
                assert!(durable.knows(LONG));
                Duration::ZERO
            })
            .unwrap();
        assert!(durable.knows(LONG) && grace() == millis(LONG));
        look(Duration::ZERO);
        look(Duration::ZERO);
        look(Duration::ZERO);
        assert_eq!(grace(), millis(DEFAULT_TTL), "for which nobody has to wait for the disk");
    }

    #[test]
    fn what_cannot_be_written_stays() {
        const LONG: Duration = Duration::from_secs(3600);
        let dir = Scratch::new();
        let (durable, _) = dir.open().unwrap();
        durable.will_grant(LONG).unwrap();
        // In the way of what is written beside the file.
        fs::create_dir(dir.0.join("state.new")).unwrap();
        assert_eq!(durable.no_longer(|| Duration::ZERO).unwrap_err().kind(), ErrorKind::Storage);
        assert!(durable.knows(LONG));
        assert_eq!(dir.state().longest_ttl_ms, millis(LONG));
    }

    #[test]
    fn tokens_are_reserved_before_they_are_given() {
        let dir = Scratch::new();
        let (durable, found) = dir.open().unwrap();
        let next = found.first_token + BLOCK;
        assert!(durable.has_tokens(next));
        drop(durable);
        assert!(dir.open().unwrap().1.first_token > next);
    }

    #[test]
    fn a_proof_is_good_for_what_was_granted_alone_and_outlives_a_crash() {
        let dir = Scratch::new();
        let (durable, _) = dir.open().unwrap();
        let proof = durable.proof("team-a", &kept());
        drop(durable);
        let (durable, _) = dir.open().unwrap();
        assert!(durable.is_proof("team-a", &kept(), &proof));
        let forged = [
            Kept { fencing_token: Some(1_006), ..kept() },
            Kept { claim: ClaimId::from_u128(8), ..kept() },
            Kept { mode: Mode::Shared, ..kept() },
            Kept { ttl_ms: 16_000, ..kept() },
            Kept { name: "deploy2".parse().unwrap(), ..kept() },
        ];
        for forged in forged {
            assert!(!durable.is_proof("team-a", &forged, &proof), "{forged:?}");
        }
        assert!(!durable.is_proof("team-b", &kept(), &proof));
        for wrong in ["", "00", "zz", &proof[2..], "\u{e9}0000000000000000000000000000000"] {
            assert!(!durable.is_proof("team-a", &kept(), wrong), "{wrong}");
        }
    }

    #[test]
    fn a_server_that_does_not_serve_leaves_all_as_it_was() {
        let dir = Scratch::new();
        let claims = BTreeMap::from([("team-a".to_owned(), vec![kept()])]);
        dir.open().unwrap().0.stopped(&claims, 1_006).unwrap();
        for _ in 0..2 {
            let (_, found) = Durable::open(&dir.0, [1, 2], 1_000).unwrap();
            assert_eq!((found.claims, found.first_token, found.grace), (claims.clone(), 1_006, None));
        }
    }

    #[test]
    fn two_servers_do_not_share_a_directory() {
        let dir = Scratch::new();
        let one = dir.open().unwrap();
        let error = dir.open().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("another server"), "{error}");
        drop(one);
        dir.open().unwrap();
    }

    #[test]
    fn damage_is_told_and_nothing_is_overwritten() {
        let dir = Scratch::new();
        drop(dir.open().unwrap());
        let path = dir.0.join("state.json");
        for damage in ["", "{", "{\"version\":1}", "null"] {
            fs::write(&path, damage).unwrap();
            let error = dir.open().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Storage, "{damage}");
            assert_eq!(fs::read_to_string(&path).unwrap(), damage);
        }
    }
}
