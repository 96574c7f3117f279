"""What nbval 0.11 needs to compare every output of a notebook strictly.

Four repairs, all by wrapping its methods: a trailing `;` silences a cell as it does in
Jupyter; `clear_output`, display updates and output that a widget captures count as
they do when nbclient stores them; each stored picture must still be drawn; and a cell
that was never executed fails instead of passing.
"""

import os
import re

import nbval.kernel
import nbval.plugin
import pytest
from nbformat import NotebookNode

from tools.notebooks import ENVIRONMENT

PICTURE = re.compile(r"data:image/[\w+.-]+;base64,[A-Za-z0-9+/=]+")
PNG, JPEG = "iVBORw0KGgo", "/9j/"  # how their base64 begins


def pytest_configure(config):
    if config.option.nbval:
        # Outputs were stored under these settings; kernels inherit them from here.
        os.environ.update(ENVIRONMENT)
        # Only `make notebooks` may write the pages' files.
        os.environ.pop("GENLIB_LIVE", None)


def execute_cell_input(self, cell_input, allow_stdin=None):
    # Without history IPython does not see a trailing `;`.
    return self.kc.execute(
        cell_input, store_history=True, allow_stdin=allow_stdin, stop_on_error=False
    )


class Display:
    """Follows a notebook's messages as a front end does, one cell after another."""

    def __init__(self):
        self.capturing = {}  # Output widget -> the request whose output it takes
        self.marks = {}  # display id -> the metadata of the output that bears it
        self.outputs = []  # of the running cell; nbval appends to it
        self.clear_next = False

    def read(self, message):
        """Act on what nbval does not know; it skips types that begin with `comm`."""
        kind, content = message["msg_type"], message["content"]
        if kind in ("comm_open", "comm_msg"):
            self.follow_widget(content)
        elif kind in OUTPUT:
            if message["parent_header"].get("msg_id") in self.capturing.values():
                message["msg_type"] = "comm (taken by an Output widget)"
            elif not self.show(kind, content):
                message["msg_type"] = "comm (done)"

    def follow_widget(self, content):
        state = content["data"].get("state") or {}
        if state.get("msg_id"):
            self.capturing[content["comm_id"]] = state["msg_id"]
        elif "msg_id" in state:
            self.capturing.pop(content["comm_id"], None)

    def show(self, kind, content):
        """Whether this is an output to append; other messages change earlier ones."""
        name = content.get("transient", {}).get("display_id")
        if kind == "update_display_data":
            for output in self.outputs:
                if name in self.marks and output.get("metadata") is self.marks[name]:
                    output["data"] = content["data"]
            return False
        if self.clear_next or (kind == "clear_output" and not content.get("wait")):
            self.outputs.clear()
        self.clear_next = kind == "clear_output" and content.get("wait", False)
        if name is not None:
            # nbval keeps this very object with the output: it tells which one it is.
            content["metadata"] = self.marks[name] = NotebookNode(content["metadata"])
        return kind != "clear_output"


OUTPUT = {
    "stream",
    "display_data",
    "execute_result",
    "update_display_data",
    "clear_output",
}


def setup(self, original=nbval.plugin.IPyNbFile.setup):
    original(self)
    self.display = Display()
    self.skip_compare = tuple(k for k in self.skip_compare if "image/" not in k)


def get_kernel_message(
    self,
    timeout=None,
    stream="iopub",
    original=nbval.plugin.IPyNbFile.get_kernel_message,
):
    message = original(self, timeout=timeout, stream=stream)
    if stream == "iopub":
        self.display.outputs = self.running.test_outputs
        self.display.read(message)
    return message


def runtest(self, original=nbval.plugin.IPyNbCell.runtest):
    if self.cell.execution_count is None:
        pytest.fail(
            f"{self.parent.path.name}, code cell {self.cell_num + 1} has never been "
            "executed; `make notebooks` does it",
            pytrace=False,
        )
    self.parent.running = self
    self.parent.display.clear_next = False
    original(self)


def sanitize(self, text, original=nbval.plugin.IPyNbCell.sanitize):
    """Pictures differ by machine and version: that one is drawn is what counts."""
    if isinstance(text, str):
        if text.startswith((PNG, JPEG)):
            return "<picture>"
        text = PICTURE.sub("<picture>", text)
    return original(self, text)


nbval.kernel.RunningKernel.execute_cell_input = execute_cell_input
nbval.plugin.IPyNbFile.setup = setup
nbval.plugin.IPyNbFile.get_kernel_message = get_kernel_message
nbval.plugin.IPyNbCell.runtest = runtest
nbval.plugin.IPyNbCell.sanitize = sanitize
