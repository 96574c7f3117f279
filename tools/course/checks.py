"""Run one submission in a sandbox and say which of its checks passed, and why not.

A check shares an interpreter with the student's code, which may try to make it pass.
So a check counts only with evidence:

- Its cell is the course's own, sent compiled: in the kernel there is no source of it to
  read or to rewrite, and nothing of it in the history.
- The kernel answers "ok", *and* with a secret that the last statement of the check has
  set: errors that are hidden, or a cell that is cut short, do not pass.
- The check is then run again with one of its asserts, drawn by lot, turned round. It
  must fail at that assert: asserts that do nothing do not pass.
- A number or a tensor is of a class of Python's or the libraries', not of one that the
  student wrote to agree with everything.
- The functions that checks lean on (torch, NumPy, genlib, the builtins, IPython) are
  those that were there before the student's first cell; so are the names that the
  course's own cells define.

Where there is no secret, where the turned check passes, or where something was changed,
this check and all after it get no points and the submission goes to a person.

What remains possible, for a student who has read this file: code that mends what it
broke while it is looked at, sends the kernel's answers itself, or takes the compiled
check apart in memory. Other objects that lie when they are compared are up to the
checks, which ask for types and compare plain numbers.
"""

import ast
import base64
import json
import marshal
import secrets
import symtable
import time
from pathlib import Path

from tools.course.release import is_check, marks
from tools.course.sandbox import Kernel, SandboxError

KERNELS = 5  # at most, for one submission
MESSAGE = 300  # characters of an error that a student is shown
GUARD = Path(__file__).with_name("guard.py")


# --- code that goes into the kernel ---------------------------------------------------


def sealed(tree, space="globals()"):
    """A cell's text that runs a syntax tree in a namespace, without showing it."""
    code = compile(ast.fix_missing_locations(tree), "<check>", "exec")
    text = base64.b85encode(marshal.dumps(code)).decode()
    code = f"__import__('marshal').loads(__import__('base64').b85decode({text!r}))"
    return f"exec({code}, {space})"


def asserts(tree):
    """The asserts of a cell that surely run if it passes: outside of any function,
    branch or `try`."""
    found, todo = [], list(tree.body)
    while todo:
        node = todo.pop(0)
        if isinstance(node, ast.Assert):
            found.append(node)
        elif isinstance(node, ast.For | ast.With):
            todo += node.body
    return found


class Strict(ast.NodeTransformer):
    """Has a check ask the guard what is a number or a tensor."""

    def __init__(self, guard):
        self.asked = there(guard) + ".isinstance"

    def visit_Name(self, node):
        if node.id == "isinstance" and isinstance(node.ctx, ast.Load):
            return ast.parse(self.asked, mode="eval").body
        return node


def with_secret(source, guard, name, secret):
    """A check's tree that begins with the course's names and ends with the secret."""
    begin = f"{there(guard)}.restore({used(source)!r}, globals())"
    tree = ast.parse(source)
    tree = Strict(guard).visit(tree)
    tree.body.insert(0, ast.parse(begin).body[0])
    tree.body += ast.parse(f"{name} = {secret!r}").body
    return tree


def turned_round(source, guard, name, secret):
    """The same with one assert turned round, whose message is then the secret."""
    tree = with_secret(source, guard, name, secrets.token_hex(8))
    choices = asserts(tree)
    if choices:
        chosen = secrets.choice(choices)
        chosen.test = ast.UnaryOp(ast.Not(), chosen.test)
        chosen.msg = ast.Constant(secret)
    else:
        tree.body.insert(-1, ast.parse(f"assert False, {secret!r}").body[0])
    return tree


def plant(guard, imports):
    """Code that puts a guard in place, under a module's name that is drawn by lot."""
    made = f"import sys, types\nsys.modules[{guard!r}] = types.ModuleType({guard!r})"
    tree = ast.parse(made)
    tree.body += ast.parse(GUARD.read_text("utf-8")).body
    tree.body += ast.parse(
        f"sys.modules[{guard!r}].guard = Guard({imports!r}, get_ipython())"
    ).body
    return sealed(tree, "{'get_ipython': get_ipython}")


def imported(cells):
    """The modules that the course's own code cells import."""
    found = set()
    for cell in cells:
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module}
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return sorted(found)


def there(guard):
    """Where the guard of that name is, as an expression."""
    return f"__import__('sys').modules[{guard!r}].guard"


def used(source):
    """The names that a check's text has and does not give a value to."""
    names = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)]
    own = {node.id for node in names if not isinstance(node.ctx, ast.Load)}
    return sorted({node.id for node in names} - own)


def defined(source):
    """The names that a cell defines."""
    table = symtable.symtable(source, "cell", "exec")
    return [
        s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()
    ]


# --- one submission -------------------------------------------------------------------


class Tampered(Exception):
    """What is wrong with the evidence."""


class Run:
    """The execution of a restored notebook, in as many kernels as it takes.

    After `go`: `passed`, the names of the checks that passed; `messages`, cell id ->
    why a cell failed, in words for the student; `tampered`, "" or what a person should
    look into. The notebook's cells have their outputs, cut.
    """

    def __init__(self, notebook, limits, sandboxed=True, fonts=None):
        self.notebook, self.limits = notebook, limits
        self.sandboxed, self.fonts = sandboxed, fonts
        self.passed, self.messages, self.tampered = [], {}, ""
        self.kernel, self.started = None, 0
        self.done, self.bad = [], set()  # cells that ran; that must not run again
        self.code = [c for c in notebook.cells if c.cell_type == "code"]
        self.given = [c for c in self.code if marks(c) and not marks(c)["solution"]]
        self.end = time.monotonic() + limits.total

    def go(self):
        try:
            for cell in self.code:
                self.step(cell)
        finally:
            if self.kernel:
                self.kernel.close()
        return self

    def step(self, cell):
        check = is_check(cell)
        if not self.revive():
            if check:
                self.messages[cell.id] = self.why_no_kernel()
            return
        if not check:
            reply = self.execute(cell)
            cell.outputs = outputs(reply)
            if reply.status != "ok":
                self.messages[cell.id] = self.explain(reply)
            if reply.status in ("timeout", "died", "lost") or no_memory(reply):
                self.bad.add(cell.id)
            self.done.append(cell)
        elif self.tampered:
            self.messages[cell.id] = "A person will look at this."
        else:
            try:
                if message := self.check(cell):
                    self.messages[cell.id] = message
                else:
                    self.passed.append(cell.id)
            except Tampered as error:
                self.tampered = f"{cell.id}: {error}"
                self.messages[cell.id] = f"A person will look at this: {error}."

    # --- kernels ---

    def seconds(self):
        """How long the next cell may take."""
        return max(0, min(self.limits.cell, self.end - time.monotonic()))

    def revive(self):
        """Have a kernel in which every earlier cell has run; whether there is one."""
        while not (self.kernel and self.kernel.alive()):
            if self.started == KERNELS or self.seconds() == 0:
                return False
            if self.kernel:
                self.kernel.close()
            self.started += 1
            try:
                self.kernel = Kernel(self.limits, self.sandboxed, self.fonts)
            except SandboxError:
                if self.started == 1:
                    raise
                self.kernel = None  # what its forerunner left may still be ending
                time.sleep(1)
                continue
            self.guard = "_" + secrets.token_hex(8)
            reply = self.kernel.run(
                plant(self.guard, imported(self.given)), 60, {"marks": self.marks("")}
            )
            self.before = unpack(reply.values.get("marks"))
            if self.before is None:
                raise RuntimeError(
                    f"no guard: {reply.status} {reply.name} {reply.text}"
                )
            for cell in self.done:
                if cell.id not in self.bad:
                    self.execute(cell)
                    if not self.kernel.alive():
                        self.bad.add(cell.id)
                        break
        return self.seconds() > 0

    def why_no_kernel(self):
        if self.seconds() == 0:
            return f"Not run: the whole notebook may take {self.limits.total:g} s."
        return "Not run: the code before it had stopped the kernel again and again."

    def marks(self, source):
        """The expression that gives the marks after the check of that source."""
        return f"{there(self.guard)}.mark({used(source)!r}, globals())"

    # --- cells ---

    def run(self, code, expressions=None):
        """Run code for as long as there is time; end a kernel whose memory is full."""
        reply = self.kernel.run(code, self.seconds(), expressions)
        if no_memory(reply):
            self.kernel.kill()
        return reply

    def execute(self, cell):
        """Run a cell that is no check."""
        reply = self.run(cell.source)
        if marks(cell) and not marks(cell)["solution"] and reply.status == "ok":
            names = repr(defined(cell.source))
            self.kernel.run(f"{there(self.guard)}.keep({names}, globals())", 10)
        return reply

    def check(self, cell):
        """Why a check failed, "" if it passed; Tampered."""
        name, secret = "_" + secrets.token_hex(8), secrets.token_hex(16)
        expressions = {"end": f"globals().pop({name!r})"}
        expressions["marks"] = self.marks(cell.source)
        code = sealed(with_secret(cell.source, self.guard, name, secret))
        reply = self.run(code, expressions)
        if reply.status != "ok":
            return self.explain(reply)
        if reply.values.get("end") != repr(secret):
            raise Tampered("the check did not come to its end")
        after = unpack(reply.values.get("marks")) or {}
        changed = [n for n, mark in self.before.items() if after.get(n) != mark]
        if changed:
            raise Tampered(f"this was changed: {', '.join(changed[:3])}")
        secret = secrets.token_hex(16)
        code = sealed(turned_round(cell.source, self.guard, name, secret))
        reply = self.run(code)
        if (reply.status, reply.name, reply.text) != (
            "error",
            "AssertionError",
            secret,
        ):
            raise Tampered("the check also passes where it must not")
        return ""

    def explain(self, reply):
        """Why a cell did not end well, for the student."""
        name, text = reply.name[:60], reply.text.strip()
        if len(text) > MESSAGE:
            text = text[:MESSAGE] + " ..."
        if reply.status == "timeout":
            limit = self.limits.cell
            return (
                f"Not done after {limit:g} s. Does a loop never end, or is it too much "
                "for one cell?"
            )
        if reply.status == "died":
            why = reply.text or "a crash, or more memory than there is"
            return f"The kernel died while this ran: {why}."
        if reply.status == "lost":
            return "What this gave back could not be read; was it very long?"
        if name == "NotImplementedError" and not text:
            return "Not written yet: NotImplementedError."
        if name == "NameError":
            return f"{text}. Was it renamed or deleted, or did its own cell fail?"
        if name == "AssertionError" and text:
            return text
        return f"{name}: {text}" if text else name


def no_memory(reply):
    """Whether Python or torch found no memory: then the next cell finds none either."""
    return reply.name == "MemoryError" or "alloc_cpu" in reply.text


def outputs(reply):
    """A reply's outputs in the notebook's form."""
    import nbformat

    return [nbformat.from_dict(output) for output in reply.outputs]


def unpack(shown):
    """The dictionary in the repr of a JSON text, or None where it is none."""
    try:
        marks = json.loads(ast.literal_eval(shown))
        return marks if isinstance(marks, dict) else None
    except (TypeError, ValueError, SyntaxError, RecursionError, MemoryError):
        return None
