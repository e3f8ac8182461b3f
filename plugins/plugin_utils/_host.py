# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's handle on a host's store: looks and deliveries (private to muster.agents).

A visit is a shell script, or a module's code in the host's Python. Where the host is the machine that runs ansible-playbook, its files are at hand:
the same code as the module's does it in the worker, and nothing is started.
"""

from __future__ import annotations

import base64
import hashlib
import json
import multiprocessing
import os
import socket
import subprocess
import tarfile
import time
import typing as t
from dataclasses import dataclass, field

from ansible import constants as C
from ansible.plugins.action import ActionBase

from ansible_collections.muster.agents.plugins.module_utils import _credential_store as store_here
from ansible_collections.muster.agents.plugins.module_utils._credential_store import Delivery, HostFile, LookRequest, StoreFailure, unpack_files
from ansible_collections.muster.agents.plugins.module_utils._host_facts import host_facts, host_tools
from ansible_collections.muster.agents.plugins.module_utils._receipt import Intent, Receipt, ReceiptError
from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret, new_key, open_sealed, register_with_core, seal
from ansible_collections.muster.agents.plugins.plugin_utils._errors import Ambiguous, Busy, HostFailure
from ansible_collections.muster.agents.plugins.plugin_utils._host_python import LIGHT, interpreter_of, light_command, light_payload, light_result
from ansible_collections.muster.agents.plugins.plugin_utils._host_scripts import END, START, deliver_script, look_script, nudge_script

__all__ = ["Host", "Look", "controller_identity", "holder_is_dead", "require_controller", "require_free"]

_MODULE = "muster.agents.credential_store"
_SYSTEMD = "ansible.builtin.systemd_service"
_AGENT_ID = "agent_id"
_SHELL = "/bin/sh"
_SELINUX = "/sys/fs/selinux/enforce"
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_REMEDIES = {
    "not_writable": "{place} cannot be written on the host: use become: true, or give a store directory that root can write.",
    "disk_full": "The disk that holds {place} is full on the host: make room, then run again.",
    "locked": "{place} is locked by another run on the host: let it finish, then run again.",
    "changed": "{place} was changed by another run between look and delivery: run again.",
    "unknown_owner": "There is no user or group {place} on the host: create them first.",
    "invalid": "The validation command refuses the rendered {place}; the old file stays.",
    "corrupt": "The delivery arrived damaged on the host; nothing was changed. Run again.",
}


@dataclass(frozen=True)
class Look:
    """What the store and the host showed.

    receipt is None when there is none, receipt_digest its SHA-256 (empty for none). generations maps numbers to secrets by file name.
    ids maps them to the agent's id. files holds the further files that were asked for; previous what a delivery replaced. intent says what became of ours;
    held is whoever has the lease.
    facts are the host's own (plain values), time the host's clock and taken_at the controller's at the look, key the host's fingerprint key.
    """

    receipt: Receipt | None
    receipt_digest: str
    generations: t.Mapping[int, t.Mapping[str, Secret]]
    files: t.Mapping[str, HostFile]
    previous: t.Mapping[str, HostFile]
    facts: t.Mapping[str, t.Any]
    tools: frozenset[str]
    time: int
    key: str
    intent: str = ""
    held: Intent | None = None
    leftovers: tuple[str, ...] = ()
    writable: bool = True
    free_kib: int = 0
    secrets: t.Mapping[str, Secret] = field(default_factory=dict)
    agent_id: str = ""
    taken_at: float = 0.0
    ids: t.Mapping[int, str] = field(default_factory=dict)

    def generation(self) -> int:
        """Return the number of the newest generation on the host, 0 for none; it may be newer than the receipt after a crash."""
        return max(self.generations, default=0)

    @property
    def rubbish(self) -> tuple[str, ...]:
        """What runs that died left half written, less the folder that every delivery empties by itself."""
        return tuple(path for path in self.leftovers if not path.endswith("/stage"))


class Host:
    """One identity's store on one host. A visit is one script, or one module execution where no script can do it; on the controller itself it is neither."""

    def __init__(
        self, action: ActionBase, task_vars: t.Mapping[str, t.Any], *, store: str, control_plane: str, name: str, delivery: str = "auto",
    ) -> None:
        """*delivery* is auto, fast (script only) or module; nothing is sent yet."""
        self.root = os.path.join(store, control_plane, name)
        self._action = action
        self._task_vars = dict(task_vars)
        self._way = delivery
        self._light = True
        self._key = ""

    def look(
        self, read: t.Sequence[str] = (), *, facts: bool = False, intent: Intent | None = None, url: str = "", lease: int = 60,
        force: bool = False, takeover: str = "", will_deliver: bool = False,
    ) -> Look:
        """Read the store and the files *read*; record *intent* when no usable receipt for *url* exists (or *force*).

        *facts* asks for what the host says of itself; *will_deliver* prepares the store for a sealed delivery now, which saves a visit
        later. Raises HostFailure.
        """
        require_controller()
        request = LookRequest(
            self.root, url=url, read=tuple(read), intent=intent, lease=lease, force=force, takeover=takeover, controller_time=int(time.time()))
        if self._here():
            return self._look_here(request, facts)
        if self._way != "module" and self._scriptable():
            found = self._look_by_script(request, facts)
            if found is not None:
                return found
        return self._look_by_module(request, facts, make_key=will_deliver or intent is not None)

    def deliver(self, delivery: Delivery) -> None:
        """Put *delivery* in place. Raises HostFailure, or Ambiguous when the connection broke and it may have happened."""
        require_controller()
        if self._here():
            self._deliver_here(delivery)
        elif self._way == "module":
            self._deliver_by_module(delivery)
        else:
            self._deliver_by_script(delivery)

    def execute(self, module: str, args: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
        """Run a module on the host and return its result, with failed and what there is to say where it failed. Raises HostFailure.

        Those of ours go as sources to the host's Python where that can be, which costs a fraction of what Ansible's way of running a module does.
        """
        require_controller()
        found = self._execute_light(module, args) if module in LIGHT and self._light and self._scriptable() else None
        if found is not None:
            return found
        with _Unshown(self._action):
            result = self._action._execute_module(module_name=module, module_args=dict(args), task_vars=self._task_vars)
        return dict(result)

    def run_script(self, script: str, data: bytes | None = None) -> tuple[int, str, str] | None:
        """Run *script* in the host's shell with *data* on standard input and return exit code, output and errors; None where scripts do not serve this host.

        Neither is displayed at any verbosity; of the two only *data* may be secret, since a script stands in the host's list of processes.
        """
        require_controller()
        return self._run(script, data) if self._way != "module" and self._scriptable() else None

    def nudge(self, verb: str, units: t.Sequence[str]) -> None:
        """Let systemd ``restart`` or ``reload`` the *units*, which starts those that are down. Raises HostFailure (nudge_failed).

        A script where scripts serve this host: while a token that has no successor yet is on its way to a process, each second counts.
        """
        require_controller()
        if self._way == "module":
            for unit in units:
                answer = self.execute(_SYSTEMD, {"name": unit, "state": f"{verb}ed"})
                if answer.get("failed"):
                    raise _not_nudged(verb, unit, str(answer.get("msg") or ""))
            return
        code, output, errors = self._run(nudge_script(verb, units), None)
        if code != 0 or END not in output.splitlines():
            # The script merges its own errors into the output; the other stream is the connection's, which talks there when asked to.
            raise _not_nudged(verb, " or ".join(units), output or errors)

    def _execute_light(self, module: str, args: t.Mapping[str, t.Any]) -> dict[str, t.Any] | None:
        """Run a module of ours from its sources; None, once and for all, when this host does not take it."""
        interpreter = interpreter_of(self._action, self._task_vars)
        if not interpreter:
            return None  # ansible-core finds one with the first module that it runs itself
        command = light_command(interpreter, self._action._compute_environment_string())
        found = light_result(*self._run(command, light_payload(module, args, check_mode=bool(self._action._task.check_mode))))
        self._light = found is not None
        return found

    def _scriptable(self) -> bool:
        connection = self._action._connection
        return bool(getattr(connection, "has_pipelining", False)) and getattr(connection._shell, "SHELL_FAMILY", "sh") == "sh"

    def _run(self, script: str, data: bytes | None) -> tuple[int, str, str]:
        """Run *script* with *data* on standard input; neither is displayed at any verbosity."""
        with _Unshown(self._action):
            result = self._action._low_level_execute_command(script, sudoable=True, in_data=data, executable=self._shell())
        return int(result.get("rc", 1)), str(result.get("stdout") or ""), str(result.get("stderr") or "")

    def _shell(self) -> str:
        """Return what is put before a script: nothing where the connection starts /bin/sh by itself, which spares the host a second one."""
        connection = self._action._connection
        starts_it = connection.transport == "local" and C.config.get_config_value("DEFAULT_EXECUTABLE") == _SHELL and not connection.become
        return "" if starts_it else _SHELL

    def _here(self) -> bool:
        """Say whether the host's files are at hand for this process, with the rights and the labels that the task gives them."""
        connection = self._action._connection
        return self._way == "auto" and connection.transport == "local" and not connection.become and not os.path.exists(_SELINUX)

    @staticmethod
    def _look_here(request: LookRequest, facts: bool) -> Look:
        answer = store_here.look(request)
        return _build_look(
            answer["files"], request, facts=host_facts(_run_here) if facts else {}, tools=frozenset(host_tools() if facts else ()), time=answer["time"],
            intent=answer["intent"], leftovers=tuple(answer["leftovers"]), writable=answer["writable"], free_kib=answer["free_kib"])

    @staticmethod
    def _deliver_here(delivery: Delivery) -> None:
        try:
            store_here.deliver(delivery, _run_here)
        except StoreFailure as failure:
            raise _host_failure(failure.reason, failure.detail) from None

    def _look_by_script(self, request: LookRequest, facts: bool) -> Look | None:
        code, output, errors = self._run(look_script(request, facts=facts), None)
        lines = output.splitlines()
        if START not in lines or END not in lines:
            unfit = next((line for line in lines if line.startswith("unfit ")), "")
            if self._way == "fast":
                what = unfit.partition(" ")[2] or f"exit code {code}"
                raise HostFailure(f"The host cannot be served by shell script ({what}): set delivery: auto.", reason="no_fast_way")
            if not unfit and START not in lines and code != 0 and _is_privilege_problem(errors):
                raise HostFailure("Becoming root on the host failed: check become, become_method and the become password.", reason="become_failed")
            self._way = "module"
            return None
        return _parse_look(lines[lines.index(START) + 1:], request, facts)

    def _deliver_by_script(self, delivery: Delivery) -> None:
        _code, output, _errors = self._run(deliver_script(delivery), delivery.archive())
        lines = output.splitlines()
        if END in lines:
            return
        for line in lines:
            if line.startswith("fail "):
                _word, reason, place = line.split(" ", 2)
                raise _host_failure(reason, place)
        if START in lines:
            raise Ambiguous("The delivery to the host broke off on the way; the next run finds out how far it came.", reason="delivery_lost")
        raise HostFailure("The host did not run the delivery: check the connection and become settings, then run again.", reason="delivery_failed")

    def _look_by_module(self, request: LookRequest, facts: bool, *, make_key: bool) -> Look:
        key = new_key()
        intent = request.intent
        result = self.execute(_MODULE, {
            "operation": "look", "root": request.root, "url": request.url, "read": list(request.read), "facts": facts, "seal_key": key,
            "intent": intent.dump().decode() if intent is not None else None, "lease": request.lease, "force": request.force,
            "takeover": request.takeover, "controller_time": request.controller_time,
            "make_key": make_key,
        })
        if "sealed" not in result:
            raise HostFailure(_module_said(result), reason=str(result.get("reason") or "host_failure"))
        answer = json.loads(open_sealed(key, base64.b64decode(result["sealed"])))
        self._way = "module"
        found = _build_look(
            unpack_files(base64.b64decode(answer["files"])), request, facts=answer["facts"], tools=frozenset(answer["tools"]), time=answer["time"],
            intent=answer["intent"], leftovers=tuple(answer["leftovers"]), writable=answer["writable"], free_kib=answer["free_kib"])
        self._key = found.key
        return found

    def _deliver_by_module(self, delivery: Delivery) -> None:
        document = {"plan": delivery.plan(), "archive": base64.b64encode(delivery.archive()).decode()}
        if not self._key and (delivery.secrets or delivery.files):
            self._look_by_module(LookRequest(self.root), False, make_key=True)
        nonce = new_key() if self._key else ""
        data = json.dumps(document).encode()
        body = base64.b64encode(seal(self._key + nonce, data) if nonce else data).decode()
        if not nonce and (delivery.secrets or delivery.files):
            raise HostFailure("The store on the host has no key to seal the delivery with: check that its directory can be written.", reason="not_writable")
        result = self.execute(_MODULE, {"operation": "deliver", "root": delivery.root, "payload": f"{nonce}.{body}"})
        if result.get("failed") or not result.get("delivered"):
            if result.get("reason") in _REMEDIES:
                raise _host_failure(str(result["reason"]), str(result.get("place") or delivery.root))
            raise HostFailure(_module_said(result), reason=str(result.get("reason") or "delivery_failed"))


class _Unshown:
    """While inside, the connection shows neither what it sends nor what comes back, at any verbosity.

    The ssh plugin prints the complete answer of a command at -vvv; ansible-core's own switch for that is the play context's no_log.
    """

    def __init__(self, action: ActionBase) -> None:
        contexts = [getattr(action, "_play_context", None), getattr(action._connection, "_play_context", None)]
        self._contexts = [context for context in contexts if context is not None]
        self._before: list[t.Any] = []

    def __enter__(self) -> None:
        self._before = [getattr(context, "no_log", None) for context in self._contexts]
        for context in self._contexts:
            context.no_log = True

    def __exit__(self, *_exception: object) -> None:
        for context, value in zip(self._contexts, self._before):
            context.no_log = value


def _run_here(command: t.Sequence[str]) -> tuple[int, str]:
    """Run *command* as a script on the host would, and return exit code and output; the shell's codes for one that cannot be run."""
    environment = {**os.environ, "LC_ALL": "C", "PATH": f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}"}
    try:
        done = subprocess.run(
            list(command), check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace",
            env=environment)
    except OSError as error:
        return (127 if isinstance(error, FileNotFoundError) else 126), ""
    return done.returncode, done.stdout


def _not_nudged(verb: str, unit: str, said: str) -> HostFailure:
    words = " ".join(said.split())[:300] or "no reason given"
    return HostFailure(f"{unit} could not be {verb}ed on the host: {words}", reason="nudge_failed")


def controller_identity() -> str:
    """Return who we are on a lease: host name and the id of the ansible-playbook process, also in a worker that outlived it."""
    return f"{socket.gethostname()}:{_controller_process()}"


def require_controller() -> None:
    """Raise HostFailure in a worker whose ansible-playbook is gone: the next run takes its lease for that of a dead one, and may be at work already."""
    if os.getppid() != _controller_process():
        raise HostFailure("ansible-playbook is gone, and nobody would hear of what this worker does: run again.", reason="controller_gone")


def _controller_process() -> int:
    parent = multiprocessing.parent_process()
    return parent.pid if parent is not None and parent.pid is not None else os.getppid()


def holder_is_dead(holder: str) -> bool:
    """Say whether *holder* was a process of this controller that is gone; of other controllers nobody here can know."""
    machine, _colon, process = holder.rpartition(":")
    if machine != socket.gethostname() or not process.isdigit():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def require_free(look: Look, place: str) -> None:
    """Raise HostFailure or Busy when the look already showed that a delivery could not work."""
    if look.intent in ("not_writable", "disk_full"):
        raise _host_failure(look.intent, place)
    if not look.writable:
        raise _host_failure("not_writable", place)
    if look.intent == "held" and look.held is not None:
        raise Busy(
            f"{place} is being enrolled by {look.held.controller} until its lease ends in {max(0, look.held.lease_until - look.time)} seconds: "
            "wait for that run, then run again.")


def _host_failure(reason: str, place: str) -> HostFailure:
    return HostFailure(_REMEDIES.get(reason, "The host reports {place}.").format(place=place), reason=reason)


def _module_said(result: t.Mapping[str, t.Any]) -> str:
    message = str(result.get("msg") or result.get("module_stderr") or "no answer").strip().splitlines()
    return f"The host's part failed: {message[-1][:200] if message else 'no answer'}"


def _is_privilege_problem(errors: str) -> bool:
    return any(mark in errors.lower() for mark in ("sudo:", "su:", "doas:", "become"))


def _parse_look(lines: list[str], request: LookRequest, facts: bool) -> Look:
    values: dict[str, str] = {}
    told: dict[str, str] = {}
    tools: set[str] = set()
    leftovers: list[str] = []
    position = lines.index("files")
    for line in lines[:position]:
        word, _space, rest = line.partition(" ")
        if word == "fact":
            key, _space, value = rest.partition(" ")
            told[key] = value
        elif word == "tool":
            tools.add(rest)
        elif word == "leftover":
            leftovers.append(rest)
        else:
            values[word] = rest
    body = "".join(lines[position + 1: lines.index(END)])
    try:
        files = unpack_files(base64.b64decode(body)) if body else {}
    except (tarfile.TarError, ValueError):
        raise HostFailure("The host's answer arrived damaged: run again.", reason="corrupt") from None
    if "lease" in values:
        files[f"{request.root}/intent"] = HostFile(values["lease"].encode(), "0600", "root", "root")
    return _build_look(
        files, request, facts=told, tools=frozenset(tools), time=int(values.get("time", "0")), intent=values.get("intent", ""),
        leftovers=tuple(leftovers), writable=values.get("writable") == "yes", free_kib=_number(values.get("free", "")))


def _build_look(files: dict[str, HostFile], request: LookRequest, *, facts: t.Mapping[str, t.Any], **values: t.Any) -> Look:
    """Sort what came back into receipt, generations, previous and other files."""
    own = {path[len(request.root) + 1:]: item for path, item in files.items() if path.startswith(request.root + "/")}
    generations: dict[int, dict[str, Secret]] = {}
    ids: dict[int, str] = {}
    for place, item in own.items():
        parts = place.split("/")
        if len(parts) == 3 and parts[0] == "generations" and parts[1].isdigit() and item.content:
            text = item.content.decode("utf-8", "replace")
            if parts[2] == _AGENT_ID:
                ids[int(parts[1])] = text
                generations.setdefault(int(parts[1]), {})
            else:
                generations.setdefault(int(parts[1]), {})[parts[2]] = Secret(text)
    receipt, digest = _receipt(own.get("receipt.json"))
    intent = own.get("intent")
    newest = max(generations, default=0)
    secrets = generations.get(newest, {})
    register_with_core(secrets.values())
    return Look(
        receipt=receipt, receipt_digest=digest, generations=generations, files={path: files[path] for path in request.read if path in files},
        previous={place.split("/", 1)[1]: item for place, item in own.items() if place.startswith("previous/")},
        facts=_clean_facts(facts), key=own["key"].content.decode() if "key" in own else "",
        held=Intent.load(intent.content) if intent is not None else None, secrets=secrets, agent_id=ids.get(newest, ""), ids=ids, taken_at=time.time(),
        **values)


def _receipt(item: HostFile | None) -> tuple[Receipt | None, str]:
    """Return the receipt and its digest; a receipt that cannot be read counts as lost, a newer one stops us."""
    if item is None:
        return None, ""
    digest = hashlib.sha256(item.content).hexdigest()
    try:
        return Receipt.load(item.content), digest
    except ReceiptError as error:
        if "newer" in str(error):
            raise HostFailure(str(error), reason="newer_receipt") from None
        return None, digest


def _clean_facts(facts: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return the host's facts in the guide's names and units: GiB with two digits, whole seconds."""
    if not facts:
        return {}
    clean: dict[str, t.Any] = {key: str(facts[key]) for key in ("arch", "hostname", "kernel_version", "docker_compose_version") if facts.get(key)}
    clean["os"] = str(facts.get("os", "")).lower()
    if facts.get("docker_version"):
        words = str(facts["docker_version"]).replace(",", " ").split()
        clean["docker_version"] = next((word for word in words if word[:1].isdigit()), "")
    for source, target in (("memory_kib", "memory_gb"), ("disk_free_kib", "disk_free_gb")):
        if _number(facts.get(source)):
            clean[target] = round(_number(facts[source]) / 1024 ** 2, 2)
    for key in ("cpu_cores", "uptime_seconds"):
        if _number(facts.get(key)):
            clean[key] = _number(facts[key])
    return clean


def _number(value: t.Any) -> int:
    return int(value) if str(value).isdigit() else 0
