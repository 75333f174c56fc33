"""What an editor shows, asked of pyright's language server: completions, hover, parameters."""

import json
import subprocess
import sys
import sysconfig
import threading
from typing import Any

import pytest

from tests.pages import DOCS

PROGRAM = """\
import jax
from refax import nnx

class Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(2, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear(x)

@nnx.jit
def step(model: Model, x: jax.Array) -> jax.Array:
    return model(x)

model = Model(nnx.Rngs(0))
compiled = nnx.jit(model.__call__)
step()
total = model.linear.kernel.sum()
parts = model.split()
chosen = nnx.cond(True, model, model.linear, total)
nnx.vmap(step, in_axes=0)
model.
"""
LINES = PROGRAM.splitlines()


class Editor:
    """A language server that has the program open in a directory."""

    def __init__(self, directory):
        places = [str(DOCS.parent / "src"), sysconfig.get_path("purelib")]
        (directory / "pyrightconfig.json").write_text(json.dumps({"extraPaths": places}))
        self.asked = 0
        self.program = directory / "program.py"
        self.program.write_text(PROGRAM)
        self.process: Any = subprocess.Popen(
            [sys.executable, "-m", "pyright.langserver", "--stdio"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        folder = {"uri": directory.as_uri(), "name": "program"}
        self.ask(
            "initialize", processId=None, rootUri=directory.as_uri(), capabilities={},
            workspaceFolders=[folder],
        )  # fmt: skip
        self.send({"method": "initialized", "params": {}})
        document = {"uri": self.program.as_uri(), "languageId": "python", "version": 1}
        opened = {"textDocument": {**document, "text": PROGRAM}}
        self.send({"method": "textDocument/didOpen", "params": opened})

    def send(self, message):
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        self.process.stdin.flush()

    def receive(self):
        length = None
        while line := self.process.stdout.readline().strip():
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        assert length is not None, "the language server ended"
        return json.loads(self.process.stdout.read(length))

    def ask(self, method, **params):
        self.asked += 1
        self.send({"id": self.asked, "method": method, "params": params})
        while (message := self.receive()).get("method") or message.get("id") != self.asked:
            if "id" in message:  # a request of the server's, such as for its settings
                count = len(message.get("params", {}).get("items", []))
                answer = [{"pythonPath": sys.executable}] * count or None
                self.send({"id": message["id"], "result": answer})
        return message["result"]

    def at(self, line, word=""):
        """A place in the program: at a word of a line, or at its end."""
        number = next(i for i, text in enumerate(LINES) if text.startswith(line))
        character = LINES[number].index(word) if word else len(LINES[number])
        return {
            "textDocument": {"uri": self.program.as_uri()},
            "position": {"line": number, "character": character},
        }

    def completions(self, line, word=""):
        found = self.ask("textDocument/completion", **self.at(line, word))
        return {item["label"] for item in found["items"]}

    def hover(self, line, word):
        return self.ask("textDocument/hover", **self.at(line, word))["contents"]["value"]


@pytest.fixture
def editor(tmp_path):
    editor = Editor(tmp_path)
    deadline = threading.Timer(300, editor.process.kill)
    deadline.start()
    try:
        yield editor
    finally:
        deadline.cancel()
        editor.process.kill()
        editor.process.communicate()


def test_an_editor_knows_models_and_what_transforms_make(editor):
    assert {"linear", "train", "eval", "sow", "split"} <= editor.completions("model.")
    assert {"value", "shape", "at", "T", "sum", "replace"} <= editor.completions("total", "sum")
    assert "(variable) model: Model" in editor.hover("model = ", "model")
    step = editor.hover("step()", "step")
    assert "model: Model" in step and "x: Array" in step and "Array]" in step, step
    compiled = editor.hover("compiled", "compiled")
    assert "x: Array" in compiled and "Array]" in compiled, compiled
    shown = editor.ask("textDocument/signatureHelp", **editor.at("step()", ")"))
    assert shown["signatures"][0]["label"] == "(model: Model, x: Array) -> Array"
    assert "tuple[GraphDef[Model], State[Any, Any]]" in editor.hover("parts", "parts")
    assert "chosen: Array" in editor.hover("chosen", "chosen")
    shown = editor.ask("textDocument/signatureHelp", **editor.at("nnx.vmap", ")"))
    options = shown["signatures"][0]["label"]
    assert "out_axes: " in options and "axis_size: " in options, options
