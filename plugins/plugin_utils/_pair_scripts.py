# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The shell script that puts a certificate in place beside its key (private to muster.agents).

It does what module_utils/_pair_store.py does, step by step, under the same lock and with the same names, for the two states that nearly every host is in:
there is nothing yet, or the fixed paths are our links. Starting Python on a host costs ten times what this does. In any other state, and wherever
something is not as it was when it was looked at, the script touches nothing and says so: then the module goes.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shlex
import tarfile
import typing as t
from dataclasses import dataclass

from ansible_collections.muster.agents.plugins.module_utils._atomic_file import temporary_name
from ansible_collections.muster.agents.plugins.module_utils._pair_store import Places
from ansible_collections.muster.agents.plugins.plugin_utils._errors import HostFailure
from ansible_collections.muster.agents.plugins.plugin_utils._host_scripts import END, START

__all__ = ["Installation", "Scripted", "install", "install_script"]

_TOOLS = "chmod chown cp date df env find flock ln mkdir mv rm sed sha256sum sync tail tar"
_NUMBER = re.compile(r"generation ([1-9][0-9]*)\Z")
_REMEDIES = {
    "disk_full": "The disk that holds {place} is full on the host: make room, then run again.",
    "not_writable": "{place} cannot be written on the host: use become: true, and check the path, then run again.",
}

_HEAD = """\
LC_ALL=C; export LC_ALL; umask 077; set -f
PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin; export PATH
u={unit}; g=$u/generations; s=$u/stage; w=$g/.new; p=$u/.reload_pending.muster
say() {{ printf '%s\\n' "$*"; }}
unfit() {{ say "unfit $*"; exit 0; }}
full() {{ [ "$(set -- $(df -Pk "$u" 2>/dev/null | tail -n 1); echo "${{4:-99}}")" -lt 8 ]; }}
stuck() {{ if full; then say "fail disk_full $1"; else say "fail not_writable $1"; fi; exit 0; }}
say {start}
for c in {tools}; do command -v "$c" >/dev/null 2>&1 || unfit "$c"; done
[ ! -e /sys/fs/selinux/enforce ] || unfit selinux
case $(cp --version 2>/dev/null) in *GNU*|*uutils*) ;; *) unfit cp;; esac
"""

# Whose folders they are, and the lock.
_GUARD = """\
for d in {folders}; do [ -d "$d" ] || unfit "$d"; done
for d in "${u%/*}" "$u" "$g" "$s"; do [ -d "$d" ] && [ ! -L "$d" ] && [ -O "$d" ] || unfit "$d"; done
[ -z "$(find "${u%/*}" "$u" "$g" "$s" -maxdepth 0 -perm /022 2>&1)" ] || unfit "$u is open to others"
[ ! -L "$u/lock" ] && { true >>"$u/lock"; } 2>/dev/null || unfit "$u/lock"
exec 9>>"$u/lock"
flock -n 9 || unfit "$u/lock"
"""

# What there is: nothing but a key that waits, or our links and at most the generation in use and the one before it.
_STATE = """\
for f in "$w" "$p" "$u/.current.muster" "$s/certificate.pem" {temporaries}; do [ ! -e "$f" ] && [ ! -L "$f" ] || unfit "$f"; done
for f in "$s/key.pem" "$s/request.pem"; do [ -f "$f" ] && [ ! -L "$f" ] || unfit "$f"; done
nl='
'
now=0; old=0; linked=False; list='[]'
if [ -L "$u/current" ]; then
  there=$(find "$u/current" {paths} -maxdepth 0 -type l -printf '%l\\n' 2>/dev/null)
  [ "${{there#*$nl}}" = {targets} ] || unfit 'the links'
  now=${{there%%$nl*}}
  case $now in generations/[1-9]*) now=${{now#generations/}};; *) unfit "$u/current";; esac
  case $now in *[!0-9]*) unfit "$u/current";; esac
  [ -d "$g/$now" ] || unfit "$g/$now"
  linked=True; list="[$now]"
else
  for f in "$u/current" {paths}; do [ ! -e "$f" ] && [ ! -L "$f" ] || unfit "$f"; done
fi
for d in $(find "$g" -mindepth 1 -maxdepth 1 -printf '%f/%y\\n'); do
  n=${{d%/d}}
  case $d in "$now/d") continue;; [1-9]*/d) ;; *) unfit "$g/$d";; esac
  [ "$old" = 0 ] && [ "$n" -lt "$now" ] 2>/dev/null || unfit "$g/$n"
  old=$n; list="[$old, $now]"
done
"""

# The digest that the module returned of all that it saw, made once more: SHA-256 over the digests of the files, or "-" for one that is not there.
_UNCHANGED = """\
set -- {fixed} "$s/request.pem" "$s/key.pem" ''
for n in $old $now; do [ "$n" = 0 ] || set -- "$@" "$g/$n/certificate.pem" "$g/$n/key.pem" "$g/$n/ca.pem"; done
set -- "$@" ''; form=x
for f in "$@"; do
  shift
  if [ -f "$f" ]; then set -- "$@" "$f"; form=$form%s; elif [ -e "$f" ]; then unfit "$f"; else form=$form-; fi
done
digests=$(sha256sum -- "$@" | sed 's/^\\\\\\{{0,1\\}}\\([0-9a-f]*\\).*/\\1/; s/../\\\\x&/g')
text=$(printf "$form" $digests)$list" $now $linked"
token=$(env printf %b "${{text#x}}" | sha256sum)
[ "${{token%% *}}" = {expect} ] || unfit changed
"""

_WRITE = """\
undo() {{ rm -rf "$w" "$p"; unfit "$*"; }}
mkdir -m 0755 "$w" 2>/dev/null && tar -xf - --no-same-owner -C "$w" 2>/dev/null || undo "$w"
( cd "$w" && printf '%s\\n' {digests} | sha256sum --status -c - ) 2>/dev/null || undo 'the certificate did not arrive whole'
cp -T "$s/key.pem" "$w/key.pem" 2>/dev/null || undo "$w/key.pem"
chown {owner} {files} 2>/dev/null && chmod {certificate_mode} {certificates} && chmod {key_mode} "$w/key.pem" || undo {owner}
{{ date +%s >"$p"; }} 2>/dev/null && sync "$p" {files} "$w" 2>/dev/null || undo "$w"
n=$((now + 1))
mv -T "$w" "$g/$n" 2>/dev/null || undo "$g/$n"
sync "$g" && mv -fT "$p" "$u/reload_pending" && sync "$u" || stuck "$u"
ln -sT "generations/$n" "$u/.current.muster" && mv -fT "$u/.current.muster" "$u/current" && sync "$u" || stuck "$u/current"
"""


@dataclass(frozen=True)
class Installation:
    """What is to be put in place, and where.

    places: the options about files, as the host's module takes them. certificate, ca: PEM, the latter empty for none. expect: the token of the look.
    """

    places: t.Mapping[str, t.Any]
    certificate: str
    ca: str
    expect: str

    @property
    def paths(self) -> Places:
        """The fixed paths in the form in which the module has them."""
        found = [self.places.get(option) for option in ("certificate_path", "key_path", "ca_path")]
        return Places(*(os.path.normpath(path) if path else "" for path in found))

    @property
    def files(self) -> dict[str, bytes]:
        """What is sent, by role."""
        ca = self.ca if self.paths.ca else ""
        return {name: text.encode() for name, text in (("certificate", self.certificate), ("ca", ca)) if text}


class Scripted(t.Protocol):
    """What is needed of a host; _host.Host is one."""

    def run_script(self, script: str, data: bytes | None = None) -> tuple[int, str, str] | None:
        """Run a script on the host, where that is possible."""


def install(host: Scripted, wanted: Installation) -> int | None:
    """Put the certificate in place with the key that waits on the host. Returns the generation's number.

    Returns None when the host was left as it was, for the module to go instead. Raises HostFailure when it failed in the middle, or nobody knows.
    """
    answer = host.run_script(install_script(wanted), _archive(wanted.files))
    lines = answer[1].splitlines() if answer is not None else []
    if START not in lines:
        return None
    for line in lines[lines.index(START) + 1:]:
        word, _blank, rest = line.partition(" ")
        number = _NUMBER.match(line)
        if number is not None and END in lines:
            return int(number.group(1))
        if word == "unfit":
            return None
        if word == "fail":
            reason, _blank, place = rest.partition(" ")
            raise HostFailure(_REMEDIES.get(reason, "The host reports {place}.").format(place=place), reason=reason)
    raise HostFailure(
        "The installation of the certificate broke off on the host: run again, which finds out how far it came.", reason="delivery_lost")


def install_script(wanted: Installation) -> str:
    """Return the script; the certificates come on standard input as a tar archive."""
    places, paths, files = wanted.places, wanted.paths, wanted.files
    fixed = paths.paths()
    folders = list(dict.fromkeys(os.path.dirname(path) for path in fixed.values()))
    targets = {name: _target(paths, name, path) for name, path in fixed.items()}
    staged = {name: f'"$w/{name}.pem"' for name in (*files, "key")}
    digests = [f"{hashlib.sha256(content).hexdigest()}  {name}.pem" for name, content in files.items()]
    words = {
        "unit": shlex.quote(paths.unit), "start": START, "tools": _TOOLS, "paths": _quoted(fixed.values()),
        "temporaries": _quoted(temporary_name(path) for path in fixed.values()), "targets": shlex.quote("\n".join(targets.values())),
        "fixed": _quoted((paths.certificate, paths.key, paths.ca)), "expect": shlex.quote(wanted.expect), "digests": _quoted(digests),
        "owner": shlex.quote(f"{_who(str(places.get('owner', 'root')))}:{_who(str(places.get('group', 'root')))}"), "files": " ".join(staged.values()),
        "certificates": " ".join(staged[name] for name in files), "certificate_mode": shlex.quote(str(places.get("certificate_mode", "0644"))),
        "key_mode": shlex.quote(str(places.get("key_mode", "0600"))),
    }
    guard = _GUARD.replace("{folders}", _quoted(folders))
    parts = [_HEAD.format(**words), guard, _STATE.format(**words), _UNCHANGED.format(**words), _WRITE.format(**words)]
    # A link that shows already what it shall is left alone.
    links = [f"ln -sT {shlex.quote(targets[name])} {shlex.quote(temporary_name(path))}" for name, path in fixed.items()]
    moves = [f"mv -fT {shlex.quote(temporary_name(path))} {shlex.quote(path)}" for path in fixed.values()]
    steps = " &&\n".join([*links, *moves, f"sync {_quoted(folders)}"])
    parts.append(f'[ "$linked" = True ] || {{\n{steps}\n}} 2>/dev/null || stuck {shlex.quote(folders[0])}\n')
    parts.append(f'rm -rf "$s"; [ "$old" = 0 ] || rm -rf "$g/$old"\nsay "generation $n"\nsay {END}\n')
    return "".join(parts)


def _target(paths: Places, name: str, path: str) -> str:
    """Return what the link at the fixed *path* says."""
    target = os.path.join(paths.unit, "current", f"{name}.pem")
    here = os.path.dirname(path)
    return os.path.relpath(target, here) if here == os.path.dirname(paths.certificate) else target


def _who(name: str) -> str:
    """Return *name* for chown; a number is never taken for a name."""
    return f"+{name}" if name.isdigit() else name


def _quoted(words: t.Iterable[str]) -> str:
    return " ".join(map(shlex.quote, words))


def _archive(files: t.Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{name}.pem")
            member.size, member.mode = len(content), 0o600
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()
