# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The fast way to the host's store: one POSIX shell script a visit (private to muster.agents).

A Python module costs a host 150 to 220 ms, a script about 20: what it costs is the programs it starts, so it starts none that the shell can do
without, and none for what is not there. The scripts do what module_utils/_credential_store.py does, step by step, with
coreutils, tar and flock; where one of those is missing they say so, and the module goes instead. Secrets travel on standard input and output only:
what stands in the script, and so on a command line, are paths, modes and digests.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence

from ansible_collections.muster.agents.plugins.module_utils._atomic_file import temporary_name
from ansible_collections.muster.agents.plugins.module_utils._credential_store import (
    MAX_FILE,
    MAX_SKEW,
    MIN_FREE_KIB,
    Delivery,
    LookRequest,
    StagedFile,
    previous_name,
)

__all__ = ["END", "START", "deliver_script", "look_script", "nudge_script"]

START = "muster-start"
END = "muster-end"
_TOOLS = "base64 chmod chown cp date df find flock grep install mkdir mv rm sha256sum sync tail tar uname"
_BLOCK = 512

_HEAD = """\
LC_ALL=C; export LC_ALL; umask 077
PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin; export PATH
r={root}; told=
say() {{ printf '%s\\n' "$*"; }}
"""

_FITNESS = """\
say {start}
for c in {tools}; do command -v "$c" >/dev/null 2>&1 || {{ say "unfit $c"; exit 0; }}; done
if [ -e /sys/fs/selinux/enforce ]; then say 'unfit selinux'; exit 0; fi
now=$(date -d now +%s 2>/dev/null) || {{ say 'unfit date'; exit 0; }}  # BusyBox knows no "now"; where date is its own, cp and mv are
"""

_PLACE = """\
say "time $now"
p=$r; while [ ! -d "$p" ]; do p=${p%/*}; [ -n "$p" ] || p=/; done
if [ -w "$p" ]; then say 'writable yes'; else say 'writable no'; fi
set -- $(df -Pk / "$p"); disk=${11:-}; free=${17:-0}; say "free $free"  # seven words of head, six of a line, and / has no blank in its name
"""

_INTENT = """\
settled() {{
  [ -f "$r/receipt.json" ] && [ "$(grep -cxF {settled} "$r/receipt.json")" = 2 ]
}}
record() {{
  skew=$((now - {controller_time}))
  if [ "${{skew#-}}" -gt {max_skew} ]; then say 'intent clock_skew'; return 0; fi
  if [ "$free" -lt {min_free} ] && [ ! -e "$r/receipt.json" ]; then say 'intent disk_full'; return 0; fi
  if [ -d "$r" ]; then chmod 700 "$r"; else mkdir -p "$r"; fi && true >>"$r/lock" || return 1
  exec 9>>"$r/lock"; flock -w 10 9 || return 1
  attempt=; holder=; until=0
  [ -s "$r/intent" ] && IFS='\t' read -r attempt holder until _ <"$r/intent"
  case $until in ''|*[!0-9]*) attempt=; until=0;; esac
  if [ "$until" -gt "$now" ] && [ "$holder" != {me} ] && [ "$holder" != {takeover} ]; then say 'intent held'; return 0; fi
  [ -n "$attempt" ] || attempt={attempt}
  mine="$attempt	"{me}"	$((now + {lease}))	"{why}
  if [ -e "$r/intent" ] || [ -L "$r/intent" ]; then
    if [ -e "$r/.intent.muster" ] || [ -L "$r/.intent.muster" ]; then rm -f "$r/.intent.muster"; fi
    # The attempt in the one that is replaced may have made a record already: it goes when the new one is on the disk.
    say "$mine" >"$r/.intent.muster" && sync "$r/.intent.muster" && mv -fT "$r/.intent.muster" "$r/intent" || return 1
  else  # nothing is lost when it is cut short: the first request waits for it to be on the disk
    say "$mine" >"$r/intent" || {{ rm -f "$r/intent"; return 1; }}
  fi
  sync "$r/intent" "$r" || return 1
  say 'intent recorded'; say "lease $mine"; told=$r/intent
}}
attempt=
{condition} record 2>/dev/null || {{
  if [ "$(set -- $(df -Pk "$p" | tail -n 1); echo "$4")" -lt 8 ]; then say 'intent disk_full'; else say 'intent not_writable'; fi
  [ -z "$attempt" ] || rm -f "$r/.intent.muster" 2>/dev/null  # ours, since the lock is
}}
"""

_FACTS = """\
shown() { [ -r "$1" ] && read -r v <"$1"; }
if shown /proc/sys/kernel/arch; then  # Linux 6.1 and later
  say "fact arch $v"
  shown /proc/sys/kernel/ostype && say "fact os $v"
  shown /proc/sys/kernel/hostname && say "fact hostname $v"
  shown /proc/sys/kernel/osrelease && say "fact kernel_version $v"
else
  set -- $(uname -snrm); say "fact os $1"; say "fact hostname $2"; say "fact kernel_version $3"; say "fact arch $4"
fi
n=0
if shown /sys/devices/system/cpu/online; then  # as in 0-3,6
  IFS=,
  for v in $v; do n=$((n + ${v#*-} - ${v%-*} + 1)); done
  unset IFS
fi
[ "$n" -gt 0 ] || n=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 0)
say "fact cpu_cores $n"
while read -r k v _; do [ "$k" = MemTotal: ] && say "fact memory_kib $v" && break; done </proc/meminfo
read -r v _ </proc/uptime && say "fact uptime_seconds ${v%.*}"
say "fact disk_free_kib $disk"
if command -v docker >/dev/null 2>&1; then
  say "fact docker_version $(docker --version 2>/dev/null)"
  v=$(docker compose version --short 2>/dev/null) || v=$(docker-compose version --short 2>/dev/null) || v=
  [ -n "$v" ] && say "fact docker_compose_version $v"
fi
for c in docker rsync curl; do command -v "$c" >/dev/null 2>&1 && say "tool $c"; done
"""

_FILES = """\
for f in {leftovers} "$r"/.*.muster "$r/previous.new"; do if [ -e "$f" ] || [ -L "$f" ]; then say "leftover $f"; fi; done
[ -d "$r/stage" ] && say "leftover $r/stage"
set --
for f in "$r/receipt.json" "$r/key" "$r/intent" "$r"/generations/*/* "$r"/previous/*; do
  [ ! -f "$f" ] || [ -L "$f" ] || [ "$f" = "$told" ] || set -- "$@" "$f"
done
for f in {read}; do [ ! -f "$f" ] || set -- "$@" "$f"; done
say files
[ $# -eq 0 ] || find -L "$@" -maxdepth 0 -type f -size -{blocks} -print0 2>/dev/null |
  tar -cPhf - --hard-dereference --null --no-recursion -T - 2>/dev/null | base64 -w 0
say; say {end}
"""

_DELIVER_HEAD = """\
say {start}
fail() {{ rm -rf "$r/stage" {temporaries}; say "fail $*"; exit 0; }}
full() {{ [ "$(set -- $(df -Pk "${{1%/*}}" 2>/dev/null | tail -n 1); echo "${{4:-99}}")" -lt 8 ]; }}
stuck() {{ if full "$1"; then fail disk_full "$1"; else fail not_writable "$1"; fi; }}
torn() {{ if full "$r/stage"; then fail disk_full "$r/stage"; else fail corrupt 'the delivery cannot be unpacked'; fi; }}
[ -d "$r" ] || mkdir -p "$r" 2>/dev/null || {{ say "fail not_writable $r"; exit 0; }}
{{ true >>"$r/lock"; }} 2>/dev/null || {{ say "fail not_writable $r"; exit 0; }}
exec 9>>"$r/lock"
flock -w 10 9 || {{ say "fail locked $r"; exit 0; }}
now=; if [ -f "$r/receipt.json" ]; then now=$(sha256sum <"$r/receipt.json"); now=${{now%% *}}; fi
[ "$now" = {expect} ] || {{ say "fail changed $r"; exit 0; }}
"""

_UNPACK = """\
if [ -e "$r/stage" ] || [ -L "$r/stage" ]; then rm -rf "$r/stage"; fi
[ -w "$r" ] || stuck "$r/stage"
tar -xf - -C "$r" --no-same-owner 2>/dev/null || torn
whole() { cd "$r/stage" 2>/dev/null && [ -f manifest ] && { [ ! -s manifest ] || sha256sum --status -c manifest 2>/dev/null; }; }
whole || fail corrupt 'the delivery differs from its manifest'
"""


def look_script(request: LookRequest, *, facts: bool) -> str:
    """Return the script of a look; its answer is parsed in _host.py. *facts* adds what the host says of itself."""
    parts = [_HEAD.format(root=shlex.quote(request.root)), _FITNESS.format(start=START, tools=_TOOLS), _PLACE]
    if request.intent is not None:
        parts.append(_INTENT.format(
            settled=_settled_lines(request.url), me=shlex.quote(request.intent.controller), takeover=shlex.quote(request.takeover),
            attempt=shlex.quote(request.intent.attempt), lease=int(request.lease), why=shlex.quote(request.intent.why),
            controller_time=int(request.controller_time or 0), max_skew=MAX_SKEW if request.controller_time else 1 << 60,
            min_free=MIN_FREE_KIB, condition="" if request.force else "settled ||"))
    if facts:
        parts.append(_FACTS)
    read = " ".join(shlex.quote(path) for path in request.read)
    leftovers = " ".join(shlex.quote(temporary_name(path)) for path in request.read)
    parts.append(_FILES.format(leftovers=leftovers, read=read, blocks=MAX_FILE // _BLOCK + 1, end=END))
    return "".join(parts)


def deliver_script(delivery: Delivery) -> str:
    """Return the script of a delivery; the archive comes on standard input."""
    temporaries = " ".join(shlex.quote(temporary_name(item.path)) for item in delivery.files)
    lines = [
        _HEAD.format(root=shlex.quote(delivery.root)),
        _DELIVER_HEAD.format(start=START, temporaries=temporaries, expect=shlex.quote(delivery.expect)),
    ]
    if delivery.remove_all:
        return "".join([*lines, _removal(delivery), f"say {END}\n"])
    lines.append(_UNPACK)
    lines += [_stage(index, item) for index, item in enumerate(delivery.files)]
    folder = f"g/{delivery.generation}"
    durable = [f"{folder}/{name}" for name, _content in delivery.secrets] + ([folder, "g"] if delivery.generation else [])
    durable += [name for name, there in (("receipt.json", delivery.receipt), ("key", delivery.key)) if there]
    durable += [temporary_name(item.path) for item in delivery.files]
    if durable:
        place = shlex.quote(delivery.files[0].path) if delivery.files else '"$r/stage"'
        lines.append(f'sync {" ".join(map(shlex.quote, durable))} 2>/dev/null || {{ ! full "$r/stage" || stuck "$r/stage"; stuck {place}; }}\n')
    if delivery.save_previous:
        lines.append(_save_previous(delivery.files))
    lines.append(_moves(delivery))
    if delivery.keep:
        kept = "|".join(str(int(number)) for number in delivery.keep)
        lines.append(f'for g in "$r"/generations/*; do case ${{g##*/}} in {kept}|*[!0-9]*) ;; *) rm -rf "$g";; esac; done\n')
    intent = "" if delivery.keep_intent else '"$r/intent" '
    lines.append(f'cd /; rm -rf {intent}"$r/stage" "$r/previous.new" "$r"/.*.muster\nsay {END}\n')
    return "".join(lines)


def nudge_script(verb: str, units: Sequence[str]) -> str:
    """Return the script that lets systemd ``restart`` or ``reload`` the *units*, all at once; what is down is started."""
    word = "restart" if verb == "restart" else "reload-or-restart"
    return f"LC_ALL=C; export LC_ALL\nsystemctl {word} -- {' '.join(shlex.quote(unit) for unit in units)} 2>&1 && echo {END}\n"


def _settled_lines(url: str) -> str:
    """Return the options of grep that find two lines, no more, in a receipt which needs no intent: its phase, and its server's URL."""
    values = [f' "phase": "{phase}"' for phase in ("ISSUED", "STORED", "ACTIVE", "COMMITTED")] + [f' "url": {json.dumps(url)}']
    return " ".join(f"-e {shlex.quote(value + end)}" for value in values for end in ("", ","))


def _moves(delivery: Delivery) -> str:
    """Return the lines that give everything its name, the receipt last, and then make the names last, in the same order.

    What they name is on the disk by now. A host that loses power between them has the old receipt, or a new one whose files the next run finds amiss;
    it was not told to be done.
    """
    lines, places = [], []
    if delivery.generation:
        number = int(delivery.generation)
        places.append('"$r/generations"')
        lines.append(
            f'if [ -d "$r/generations" ]; then mv -T g/{number} "$r/generations/{number}"; else mv -T g "$r/generations"; fi || '
            f'stuck "$r/generations/{number}"\n')
    lines += [f"mv -fT {shlex.quote(temporary_name(item.path))} {shlex.quote(item.path)} || stuck {shlex.quote(item.path)}\n" for item in delivery.files]
    places += [shlex.quote(directory) for directory in sorted({os.path.dirname(item.path) for item in delivery.files})]
    if delivery.remove:
        if places:
            places.append('"$r"')
            lines.append(f"sync {' '.join(places)} || stuck {places[0]}\n")
            places = []
        lines.append(f"rm -rf {' '.join(shlex.quote(item) for item in delivery.remove)}\n")
    if delivery.key or delivery.receipt:
        key = '[ -e "$r/key" ] || set -- key; ' if delivery.key else ""
        receipt = 'set -- "$@" receipt.json; ' if delivery.receipt else ""
        lines.append(f'set --; {key}{receipt}[ $# -eq 0 ] || mv -f -t "$r" "$@" || stuck "$r/receipt.json"\n')
    if delivery.generation or delivery.key or delivery.receipt:
        places.append('"$r"')
    if places:
        lines.append(f"sync {' '.join(places)} || stuck {places[-1]}\n")
    return "".join(lines)


def _stage(index: int, item: StagedFile) -> str:
    """Return the lines that stage one rendered file beside its place, owner and mode set where only root can reach it."""
    directory, temporary = os.path.dirname(item.path), temporary_name(item.path)
    owner, mode = shlex.quote(f"{item.owner}:{item.group}"), shlex.quote(item.mode)
    lines = [
        f"[ ! -d {shlex.quote(item.path)} ] || fail not_writable {shlex.quote(item.path + ' is a directory')}",
        _directories(directory, item.directory_mode),
        f"install -o {shlex.quote(item.owner)} -g {shlex.quote(item.group)} -m {mode} -T f{index} {shlex.quote(temporary)} 2>/dev/null || {{",
        f"  chown {owner} f{index} 2>/dev/null || fail unknown_owner {shlex.quote(f'{item.owner}:{item.group} for {item.path}')}",
        f"  stuck {shlex.quote(item.path)}",
        "}",
    ]
    if item.validate:
        command = " ".join(shlex.quote(word.replace("%s", temporary)) for word in item.validate)
        lines.append(f"{command} >/dev/null 2>&1 </dev/null || fail invalid {shlex.quote(item.path)} \"(exit code $?)\"")
    return "\n".join(lines) + "\n"


def _directories(directory: str, mode: str) -> str:
    """Return the line that makes what is missing of *directory* with *mode*, parents first."""
    chain = []
    while directory not in ("", "/"):
        chain.append(directory)
        directory = os.path.dirname(directory)
    names = " ".join(shlex.quote(item) for item in reversed(chain))
    return f'for d in {names}; do [ -d "$d" ] || mkdir -m {shlex.quote(mode)} "$d" 2>/dev/null || stuck "$d"; done'


def _save_previous(files: tuple[StagedFile, ...]) -> str:
    lines = [
        f'set --; for f in {" ".join(shlex.quote(item.path) for item in files)}; do [ ! -f "$f" ] || set -- "$f"; done',
        'if [ $# -gt 0 ] || [ -e "$r/previous" ]; then',
        'if [ -e "$r/previous.new" ]; then rm -rf "$r/previous.new"; fi; mkdir "$r/previous.new" || stuck "$r/previous.new"',
    ]
    for item in files:
        path, copy = shlex.quote(item.path), shlex.quote(previous_name(item.path))
        lines.append(f'[ ! -f {path} ] || cp -pT {path} "$r/previous.new/"{copy} || stuck "$r/previous.new"')
    lines.append('if [ -e "$r/previous" ]; then rm -rf "$r/previous"; fi; mv -T "$r/previous.new" "$r/previous" && sync "$r" || stuck "$r/previous"')
    lines.append("fi")
    return "\n".join(lines) + "\n"


def _removal(delivery: Delivery) -> str:
    """Return the lines of a withdrawal; the receipt goes last, so that a crash on the way leaves one that says what to finish."""
    removed = f"rm -rf {' '.join(shlex.quote(item) for item in delivery.remove)}\n" if delivery.remove else ""
    return (
        f'{removed}find "$r" -mindepth 1 -maxdepth 1 ! -name receipt.json ! -name lock -exec rm -rf {{}} + || stuck "$r"\n'
        'rm -f "$r/receipt.json" "$r/lock"; rmdir "$r" || stuck "$r"\n')
