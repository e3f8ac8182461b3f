# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Templates know their secrets, and nothing else does: not the variables, not the errors, not the output, not the diff."""

from __future__ import annotations

import base64
import copy
import importlib
import io
import json
import re
import traceback
import typing as t
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from urllib.parse import quote, unquote

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from ansible.utils.display import Display
from hypothesis import example, given
from hypothesis import strategies as st

from ansible_collections.muster.agents.plugins.module_utils._secrets import Secret
from ansible_collections.muster.agents.plugins.plugin_utils import _rendering
from ansible_collections.muster.agents.plugins.plugin_utils._errors import InvalidInput, RenderFailure
from ansible_collections.muster.agents.plugins.plugin_utils._rendering import RenderedFile, Renderer, redacted_view, unmanaged_view

CANARY = "c4n4ry-t0ken-{{ 7 * 6 }}-{% raise %}-#}"
PLAIN = "Zx81plainCanaryTokenWithoutAnySpecials"
AGENT = {"agent_id": "42", "name": "n-1", "generation": 3, "capabilities": ["docker", "logs"], "hostname": "{{ 6 * 7 }}"}


def trusted(text: str) -> str:
    """Return *text* as inventory or play text is: a template where core knows trust."""
    mark = getattr(importlib.import_module("ansible.template"), "trust_as_template", str)
    return t.cast(str, mark(text))


def entry(**given: t.Any) -> dict[str, t.Any]:
    """Return one validated value of the option files."""
    base = {"path": "/opt/agent/.env", "src": None, "content": None, "format": "text", "owner": "root", "group": "root", "mode": "0600",
            "directory_mode": "0755", "validate": None, "restart": True}
    return {**base, **given}


class World:
    """A playbook directory with a role's templates, and an action's templar over it."""

    def __init__(self, root: Path) -> None:
        self.role = root / "roles" / "mine"
        (self.role / "templates").mkdir(parents=True)
        self.loader = DataLoader()
        self.loader.set_basedir(str(root))
        self.vars: dict[str, t.Any] = {"port": 5000, "ansible_search_path": [str(self.role), str(root)]}

    def template(self, text: str | bytes, name: str = "agent.j2") -> str:
        path = self.role / "templates" / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return name

    def render(self, *entries: t.Mapping[str, t.Any], secrets: t.Mapping[str, str] | None = None) -> tuple[RenderedFile, ...]:
        wrapped = {name: Secret(value) for name, value in ({"token": CANARY} if secrets is None else secrets).items()}
        return Renderer(Templar(loader=self.loader, variables=self.vars), entries, self.vars)(AGENT, wrapped)

    def text(self, text: str, fmt: str = "text", **given: t.Any) -> str:
        return self.render(entry(src=self.template(text), format=fmt), **given)[0].content.decode()

    def failure(self, text: str | bytes, fmt: str = "text", **given: t.Any) -> RenderFailure:
        with pytest.raises(RenderFailure) as caught:
            self.render(entry(src=self.template(text), format=fmt), **given)
        return checked(caught.value)


def checked(failure: RenderFailure) -> RenderFailure:
    """Return *failure* after looking for content in everything that could be printed of it."""
    printed = "".join(traceback.format_exception(type(failure), failure, failure.__traceback__)) + json.dumps(failure.as_result())
    messages = printed if failure.__context__ is None else printed + repr(failure.__context__)
    for content in ("c4n4ry", "secret-value", "{{", "{%"):
        quoted = [line for line in messages.splitlines() if content in line and not line.startswith(("    ", "  File"))]
        assert not quoted
    assert failure.__context__ is None
    assert failure.__cause__ is None
    return failure


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_secrets_agent_and_variables_are_rendered_into_the_file(world: World) -> None:
    text = world.text("TOKEN={{ muster_secret.token | muster.agents.env_quote }}\nID={{ muster_agent.agent_id }}\nPORT={{ port }}\n", "env")
    assert text == f"TOKEN='{CANARY}'\nID=42\nPORT=5000\n"


def test_a_secret_or_agent_value_that_looks_like_a_template_is_not_rendered_again(world: World) -> None:
    assert world.text("{{ muster_secret.token }} {{ muster_secret['token'] }} {{ muster_agent.hostname }}") == f"{CANARY} {CANARY} {{{{ 6 * 7 }}}}"


def test_a_variable_of_the_inventory_may_use_a_secret_and_is_rendered(world: World) -> None:
    world.vars["line"] = trusted("T={{ muster_secret.token }}")
    assert world.text("{{ line }}\n") == f"T={CANARY}\n"


def test_data_from_a_host_is_never_rendered(world: World) -> None:
    wrap = (lambda value: value) if hasattr(importlib.import_module("ansible.template"), "trust_as_template") else importlib.import_module(
        "ansible.utils.unsafe_proxy").wrap_var
    world.vars["fact"] = wrap("{{ muster_secret.token }}")
    assert world.text("F={{ fact }}\n") == "F={{ muster_secret.token }}\n"


def test_task_variables_are_left_as_they_were_and_never_learn_a_secret(world: World) -> None:
    before = copy.deepcopy(world.vars)
    templar = Templar(loader=world.loader, variables=world.vars)
    Renderer(templar, [entry(src=world.template("{{ muster_secret.token }}"))], world.vars)(AGENT, {"token": Secret(CANARY)})
    assert world.vars == before
    assert templar.available_variables == before
    assert "muster_secret" not in templar.available_variables


def test_what_is_rendered_is_the_template_that_was_tried_with_what_is_true_by_then(world: World) -> None:
    template = world.template("port={{ port }}\ntoken={{ muster_secret.token }} of {{ muster_agent.name }}\n")
    renderer = Renderer(Templar(loader=world.loader, variables=world.vars), [entry(src=template), entry(src=template, path="/opt/agent/copy")], world.vars)
    renderer({**AGENT, "name": "stand-in"}, {"token": Secret("stand-in")})
    world.template("{{ edited meanwhile")
    world.vars["port"] = 6000
    expected = f"port=6000\ntoken={CANARY} of {AGENT['name']}\n".encode()
    assert [file.content for file in renderer(AGENT, {"token": Secret(CANARY)})] == [expected, expected]
    assert CANARY not in repr(vars(renderer)) + repr([source.templar.available_variables for source in renderer._sources.values()])


def test_a_task_variable_cannot_take_the_place_of_the_secrets(world: World) -> None:
    world.vars["muster_secret"] = {"token": "from the inventory"}
    assert world.text("{{ muster_secret.token }}") == CANARY


def test_nothing_is_printed_at_the_highest_verbosity(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Display(), "verbosity", 6)
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        world.text("{{ muster_secret.token }}\n{{ muster_secret | length }}\n")
        world.failure("{{ muster_secret.token | int + nope }}")
        world.failure("{{ muster_secret.token }} {{ [muster_secret.token] | first | mandatory | from_json }}")
    assert "c4n4ry" not in out.getvalue()


def test_a_rendered_file_does_not_show_its_content(world: World) -> None:
    rendered = world.render(entry(src=world.template("{{ muster_secret.token }}")))
    assert "c4n4ry" not in repr(rendered)


def test_blocks_trailing_newlines_and_backslashes_are_kept_as_the_template_module_does(world: World) -> None:
    assert world.text("a\n  {% if true %}\nb\\n\n  {% endif %}\nc\n\n") == "a\n  b\\n\n  c\n\n"
    assert world.text("a {%- if false %} b {% endif %}") == "a"
    assert world.text("") == ""
    assert world.text("{{ '' }}") == ""


def test_a_template_of_one_expression_is_text(world: World) -> None:
    assert world.text("{{ port }}") == "5000"
    assert world.text("{{ {'a': 1} | to_json }}", "json") == '{"a": 1}'
    assert world.text("{{ true }}") == "True"


def test_includes_are_found_as_the_template_module_finds_them(world: World) -> None:
    world.template("T={{ muster_secret.token }}\n", "part.j2")
    Path(world.loader.get_basedir(), "beside.j2").write_text("B={{ port }}\n")
    text = world.text("{% include 'part.j2' %}\n\n{% include 'beside.j2' %}\n")
    assert text == f"T={CANARY}\nB=5000\n"


def test_the_template_names_where_it_comes_from_and_goes(world: World) -> None:
    assert world.text("{{ ansible_managed }} {{ template_path }} {{ template_destpath }}") == "Ansible managed agent.j2 /opt/agent/.env"


def test_a_template_encrypted_with_ansible_vault_is_read(world: World) -> None:
    vault = importlib.import_module("ansible.parsing.vault")
    password = vault.VaultSecret(b"pw")
    world.loader.set_vault_secrets([("default", password)])
    cipher = vault.VaultLib([("default", password)]).encrypt(b"T={{ muster_secret.token }}\n", password)
    assert world.render(entry(src=world.template(cipher)))[0].content == f"T={CANARY}\n".encode()
    world.loader.set_vault_secrets([])
    assert "vault password" in world.failure(cipher).msg


def test_an_optional_secret_can_be_asked_for(world: World) -> None:
    text = "{% if muster_secret.vault_token is defined %}V{% else %}-{% endif %}{{ muster_secret.vault_token | default('none') }}"
    assert world.text(text) == "-none"


@pytest.mark.parametrize("text", [
    "\nA={{ muster_secret.tokn }}\n", "\nA={{ muster_secret['tokn'] }}\n", "\nA={{ muster_secret.tokn | muster.agents.env_quote }}\n",
])
def test_an_unknown_secret_is_named_with_the_known_ones(world: World, text: str) -> None:
    failure = world.failure(text, secrets={"token": CANARY, "db_password": "secret-value"})
    assert failure.msg == "Template agent.j2 at line 2: muster_secret.tokn does not exist; known here: db_password, token; add yours under secrets."
    assert failure.reason == "unknown_secret"


def test_an_unknown_agent_value_is_named_with_the_known_ones(world: World) -> None:
    assert "muster_agent.id does not exist; known here: agent_id, capabilities, generation, hostname, name" in world.failure("{{ muster_agent.id }}").msg


@pytest.mark.parametrize(("text", "said"), [
    ("a\n\n{{ nope }}\n", "at line 3: 'nope' is undefined."),
    ("a\n{{ thing.nope }}\n", "at line 2: 'nope' is undefined."),
    ("a\n{{ thing['nope'].deeper }}\n", "at line 2: 'nope' is undefined."),
    ("{% for x in nope %}{% endfor %}\n", "at line 1: 'nope' is undefined."),
    ("a\n{{ nope | upper }}\n", "at line 2: 'nope' is undefined."),
    ("a\n{{ nope | mandatory }}\n", "at line 2: 'nope' is undefined."),
    ("{{ nope }}\n{{ nope }}\n", "j2: 'nope' is undefined."),
    ("a\n{{ outer }}\n", "at line 2: the variable 'outer' uses 'inner', which is undefined."),
    ("a\n{{ thing[muster_secret.token] }}\n", "j2: uses an undefined variable or attribute."),
    ("a\n{{ undef(hint=muster_secret.token) }}\n", "j2: uses an undefined variable or attribute."),
    ("a\n{{ undef(hint=\"'\" ~ muster_secret.token ~ \"' is undefined\") }}\n", "j2: uses an undefined variable or attribute."),
])
def test_what_is_undefined_is_named_and_nothing_else(world: World, text: str, said: str) -> None:
    world.vars |= {"thing": {"key": "secret-value"}, "outer": trusted("secret-value {{ middle }}"), "middle": trusted("{{ inner }}")}
    failure = world.failure(text, secrets={"token": "c4n4ry"})
    assert failure.msg.endswith(said)
    assert failure.reason == "undefined_variable"


def test_what_is_undefined_in_an_included_template_is_placed_there(world: World) -> None:
    world.template("x\ny\n{{ nope }}\n", "part.j2")
    assert re.search(r"^Template /.*/templates/part\.j2 at line 3: 'nope' is undefined\.$", world.failure("{% include 'part.j2' %}").msg)


@pytest.mark.parametrize(("text", "said"), [
    ("a\n{% if %}secret-value\n", "at line 2: is not valid Jinja2."),
    ("a\n{{ 'secret-value' \n", "is not valid Jinja2."),
    ("a\n{{ 'secret-value' | no_such_filter }}\n", "at line 2: uses the unknown filter or test 'no_such_filter'."),
    ("a\n{{ 1 is no_such_test }}\n", "at line 2: uses the unknown filter or test 'no_such_test'."),
    ("a\n{% include 'secret-value' %}\n", "at line 2: includes a template that was not found."),
    ("a\n{{ 1 / 0 }}\n", "at line 2: could not be rendered (ZeroDivisionError)."),
    ("a\n{{ muster_secret.token | from_json }}\n", "could not be rendered (JSONDecodeError)."),
    ("a\n{{ lookup('ansible.builtin.file', '/nonexistent/secret-value') }}\n", "could not be rendered ("),
    ("a\n{{ (muster_secret.token ~ '\n') | muster.agents.env_quote }}\n", "env_quote: the value holds a line break"),
])
def test_no_error_quotes_the_template_or_a_value(world: World, text: str, said: str) -> None:
    assert said in world.failure(text).msg


def test_an_error_inside_a_variable_does_not_quote_the_variable(world: World) -> None:
    world.vars["bad"] = trusted("secret-value {{ 1 / 0 }}")
    assert "could not be rendered (" in world.failure("first\n{{ bad }}\n").msg


@pytest.mark.parametrize(("data", "said"), [
    (b"\xef\xbb\xbfA=1\n", "starts with a byte order mark"),
    (b"A=1\nB=2\r\n", "has Windows line endings at line 2"),
    (b"A=1\nB=\xff\n", "is not UTF-8 at line 2"),
])
def test_a_template_saved_in_a_way_that_agents_misread_is_refused(world: World, data: bytes, said: str) -> None:
    assert said in world.failure(data).msg


def test_a_missing_template_is_named(world: World) -> None:
    with pytest.raises(RenderFailure, match=r"^Template gone\.j2 was not found: put it into the templates directory") as caught:
        world.render(entry(src="gone.j2"))
    checked(caught.value)


@pytest.mark.parametrize(("fmt", "text", "said"), [
    ("toml", "a = 1\ntoken = {{ muster_secret.token }}\n", "renders to invalid TOML at line 2 of the result: a syntax error."),
    ("json", '{"a": 1,\n"token": {{ muster_secret.token }}}', "renders to invalid JSON at line 2 of the result: a syntax error."),
    ("yaml", "a: 1\ntoken: {{ muster_secret.token }} : x: y\n", "renders to invalid YAML at line 2 of the result: a syntax error."),
    ("env", "A=1\nTOKEN={{ muster_secret.token }}\n", "renders to invalid environment file at line 2 of the result: a value with blanks"),
    ("env", "A=1\nA={{ port }}\n", "a variable is set a second time (first at line 1)"),
])
def test_a_result_that_is_not_valid_is_refused_without_its_content(world: World, fmt: str, text: str, said: str) -> None:
    failure = world.failure(text, fmt)
    assert said in failure.msg
    assert failure.reason == "invalid_content"


def test_a_secret_with_raw_bytes_is_refused(world: World) -> None:
    assert "not valid Unicode" in world.failure("{{ muster_secret.token }}", secrets={"token": "c4n4ry\udcff"}).msg


def test_the_rendered_file_carries_its_attributes_and_key_names(world: World) -> None:
    toml = entry(path="/etc/agent.toml", content='[auth]\ntoken = {% raw %}{{ muster_secret.token | toml_quote }}{% endraw %}\n', format="toml", owner="agent",
                 group="agent", mode="0640", directory_mode="0750", validate="agent check %s", restart=False)
    toml["content"] = '[auth]\ntoken = {{ muster_secret.token | toml_quote }}\n'
    rendered = world.render(toml)[0]
    assert (rendered.path, rendered.owner, rendered.group, rendered.mode, rendered.directory_mode) == ("/etc/agent.toml", "agent", "agent", "0640", "0750")
    assert (rendered.validate, rendered.restart, rendered.keys, rendered.format) == ("agent check %s", False, ("auth.token",), "toml")
    assert rendered.content == f'[auth]\ntoken = "{CANARY}"\n'.encode()


def test_key_names_do_not_show_a_secret_either(world: World) -> None:
    rendered = world.render(entry(src=world.template('{"{{ muster_secret.token }}": 1}'), format="json"), secrets={"token": "c4n4ry"})
    assert rendered[0].keys == ("<secret>",)


def test_content_knows_the_secrets_and_the_filters_of_this_collection(world: World) -> None:
    text = "T={{ muster_secret.token | muster.agents.env_quote }}\nC={{ muster_agent.capabilities | to_json | env_quote }}\n{% if true %}\nX=1\n{% endif %}\n"
    assert world.render(entry(content=text, format="env"))[0].content.decode() == f"T='{CANARY}'\nC='[\"docker\", \"logs\"]'\nX=1\n"


@pytest.mark.parametrize("text", [
    "{{ lookup('ansible.builtin.pipe', 'id') }}", "{{ query('ansible.builtin.env', 'HOME') }}", "{{ port }}", "{{ hostvars }}", "{% include 'agent.j2' %}",
    "{{ ''.__class__.__mro__ }}", "{{ muster_secret.__class__.__init__.__globals__ }}", "{{ '/etc/passwd' | unvault }}",
])
def test_content_that_came_from_a_host_cannot_run_anything_on_the_controller(world: World, text: str) -> None:
    world.template("x")
    with pytest.raises(RenderFailure) as caught:
        world.render(entry(content=text))
    checked(caught.value)


def test_an_unknown_secret_in_content_is_named_too(world: World) -> None:
    with pytest.raises(RenderFailure) as caught:
        world.render(entry(content="A=1\nT={{ muster_secret.tokn | env_quote }}\n"))
    assert checked(caught.value).msg.startswith("Content of /opt/agent/.env at line 2: muster_secret.tokn does not exist; known here: token")


def test_a_variable_left_in_content_is_explained(world: World) -> None:
    with pytest.raises(RenderFailure) as caught:
        world.render(entry(content="A=1\nPORT={{ port }}\n"))
    assert checked(caught.value).msg.startswith("Content of /opt/agent/.env at line 2: 'port' is undefined (what content leaves unrendered can use ")


@pytest.mark.parametrize(("given", "said"), [
    ({"path": "relative/.env", "content": "x"}, "'relative/.env' is not the absolute path of a file"),
    ({"path": "/opt/agent/", "content": "x"}, "'/opt/agent/' is not the absolute path of a file"),
    ({}, "needs either src .* or content"),
    ({"src": "a.j2", "content": "x"}, "needs either src .* or content"),
    ({"content": "x", "mode": "384"}, "mode of /opt/agent/.env is not an octal mode"),
    ({"content": "x", "directory_mode": "u=rwx"}, "directory_mode of /opt/agent/.env is not an octal mode"),
    ({"content": "x", "validate": "agent check"}, "validate of /opt/agent/.env lacks %s"),
])
def test_an_entry_that_cannot_be_right_is_refused_before_anything_is_rendered(world: World, given: dict[str, t.Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        world.render(entry(path="/first", content="{{ not even looked at"), entry(**given))


def test_a_path_listed_twice_is_refused(world: World) -> None:
    with pytest.raises(InvalidInput, match=r"/opt/agent/\.env is listed twice"):
        world.render(entry(content="a"), entry(content="b"))


def test_no_files_render_to_nothing(world: World) -> None:
    assert Renderer(Templar(loader=world.loader, variables={}), None, {})(AGENT, {}) == ()


SECRETS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=6, max_size=24).filter(lambda text: len(set(text.strip())) > 3)
WRITERS: dict[str, t.Callable[[str], str]] = {
    "plain": lambda value: f"token: {value}\n",
    "json": lambda value: json.dumps({"token": value}, indent=2),
    "json ascii": lambda value: json.dumps({"a": {"token": f"x{value}y"}}, ensure_ascii=False),
    "base64": lambda value: "auth = " + base64.b64encode(f"user:{value}".encode()).decode() + "\n",
    "base64 urlsafe": lambda value: "auth = " + base64.urlsafe_b64encode(f"{value}-end".encode()).decode() + "\n",
    "url": lambda value: "u=https://a:" + quote(value, safe="") + "@h/\n",
    "yaml": lambda value: yaml.safe_dump({"token": value, "list": [f"long text before {value} and after it"]}),
    "yaml wrapped": lambda value: yaml.safe_dump({"token": f"words and {value} and words"}, width=12),
}


def readings(view: str) -> list[str]:
    """Return *view* and what its readers would decode out of it, by means other than the product's own."""
    texts = [view, unquote(view)]
    with suppress(ValueError):
        texts.append(json.dumps(json.loads(view), ensure_ascii=False))
    with suppress(yaml.YAMLError):
        texts.append(str(yaml.safe_load(view)))
    for run in re.findall(r"[A-Za-z0-9+/_-]{8,}", view):
        if len(run) % 4 != 1:
            texts.append(base64.b64decode(run.replace("-", "+").replace("_", "/") + "===").decode("utf-8", "replace"))
    return texts


@pytest.mark.parametrize("writer", list(WRITERS))
@given(value=SECRETS)
@example(value="pa ss'\"\\word")
@example(value="füñkÿ-\u2028-€")
def test_a_view_never_shows_a_secret_however_it_was_written(writer: str, value: str) -> None:
    view = redacted_view(WRITERS[writer](value).encode(), writer.partition(" ")[0] if writer[:4] in ("json", "yaml") else "text", {"token": Secret(value)}, 3)
    assert not [text for text in readings(view) if value in text]


def test_a_view_shows_the_generation_in_the_place_of_the_secret() -> None:
    content = f"# note\nAGENT_ID=42\nAGENT_TOKEN={PLAIN}\nDB='x {PLAIN} y'\n".encode()
    assert redacted_view(content, "env", {"token": Secret(PLAIN)}, 3) == "# note\nAGENT_ID=42\nAGENT_TOKEN=<generation 3>\nDB='x <generation 3> y'\n"
    assert redacted_view(content, "env", {"token": Secret(PLAIN)}) == "# note\nAGENT_ID=42\nAGENT_TOKEN=<secret>\nDB='x <secret> y'\n"


def test_a_secret_inside_base64_is_cut_out_and_the_rest_is_shown() -> None:
    basic = base64.b64encode(f"agent:{PLAIN}".encode()).decode()
    view = redacted_view(f"PORT=5000\nAUTH='Basic {basic}'\n".encode(), "env", {"token": Secret(PLAIN)}, 3)
    assert view == "PORT=5000\nAUTH='Basic <generation 3>'\n"


def test_a_view_without_secrets_is_the_file() -> None:
    assert redacted_view(b"A=1\n", "env", {}, 1) == "A=1\n"


def test_an_indented_key_file_is_hidden_line_by_line() -> None:
    pem = "-----BEGIN KEY-----\nMIIBVgIBADANBgkqhkiG9w0BAQEFAASCAUAwggE8AgEAAkEA\nq7BFUpkGp3TtzFf5C2FzYmFzZTY0bGluZXR3b0xvbmdFbm91\n-----END KEY-----\n"
    view = redacted_view(("key: |\n" + "".join(f"  {line}\n" for line in pem.splitlines())).encode(), "yaml", {"key": Secret(pem)}, 2)
    assert "MIIBVg" not in view
    assert "q7BFUp" not in view


def test_a_secret_that_cannot_be_cut_out_hides_all_values() -> None:
    view = redacted_view(b'{"token": "ab\\u0063defgh", "user": "bob"}\n', "json", {"token": Secret("abcdefgh")}, 3)
    assert view == "token\nuser\n(1 line; values are not shown)\n"


@pytest.mark.parametrize(("content", "fmt", "view"), [
    (b"A=1\nB='s3cret'\n", "env", "A\nB\n(2 lines; values are not shown)\n"),
    (b"# x\nexport A = s3cret word # c\n\nB=$(s3cret)\n", "env", "A\nB\n(4 lines; values are not shown)\n"),
    (b'A="first\nSECRETPART=\nend"\n', "env", "(3 lines; values are not shown)\n"),
    (b"A=one\\\nSECRETPART=two\n", "env", "(2 lines; values are not shown)\n"),
    (b"A=1\n\xff\xfe\n", "env", "(2 lines; values are not shown)\n"),
    (b'{"a": {"b": "s3cret"}}', "json", "a.b\n(1 line; values are not shown)\n"),
    (b'{"a": s3cret', "json", "(1 line; values are not shown)\n"),
    (b"[x]\ny = 's3cret'\n", "toml", "x.y\n(2 lines; values are not shown)\n"),
    (b"s3cret\n", "text", "(1 line; values are not shown)\n"),
    (b"", "yaml", "(0 lines; values are not shown)\n"),
])
def test_of_a_file_that_somebody_else_wrote_only_key_names_are_shown(content: bytes, fmt: str, view: str) -> None:
    assert unmanaged_view(content, fmt) == view


def test_the_module_says_what_it_offers() -> None:
    assert set(_rendering.__all__) == {"RenderedFile", "Renderer", "redacted_view", "unmanaged_view"}
