# shellcheck shell=bash
# Sourced by the scripts here: where things are, on a machine that may have an empty home.
# shellcheck disable=SC2034 # those who source it use them

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit

export HOME="${HOME:-$(mktemp -d)}"
# What is built or downloaded once for all clones.
cache=${XDG_CACHE_HOME:-$HOME/.cache}/windlass
target=${CARGO_TARGET_DIR:-$root/target}
venv=$root/.venv
export PATH="$cache/bin:$PATH"

# rustup may have been installed from another home than this one.
if [[ -z ${RUSTUP_HOME-} ]] && ! cargo --version >/dev/null 2>&1; then
    beside=$(dirname "$(dirname "$(dirname "$(command -v cargo || echo /none/none/none)")")")/.rustup
    if [[ -d $beside/toolchains ]]; then
        export RUSTUP_HOME=$beside
    fi
fi

# The oldest Rust that must do, from the one place that says it.
msrv=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
case $msrv in
*.*.*) ;;
*) msrv=$msrv.0 ;;
esac

# The targets that the core is checked for besides this machine's.
export foreign_targets="x86_64-pc-windows-gnu aarch64-apple-darwin"
export wasm_target=wasm32-unknown-unknown

# All of Python that one venv holds.
export python=$venv/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '%s\n' "-- $*"; }
die() {
    printf '%s\n' "$*" >&2
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# Where a browser of the Chromium family is, if there is one.
find_chromium() {
    local candidate
    for candidate in chromium chromium-browser google-chrome-stable google-chrome; do
        if have "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

# Where WebKitGTK's own small browser is, if it is there.
find_mini_browser() {
    local candidate
    for candidate in /usr/lib/*/webkit2gtk-4.1/MiniBrowser; do
        [[ -x $candidate ]] || continue
        printf '%s\n' "$candidate"
        return
    done
    return 1
}

# Where an interpreter of this version is, if there is one: on the PATH or kept by pyenv.
find_python() {
    local candidate
    for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
        if "$candidate" --version >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}
