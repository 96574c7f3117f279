"""What the grader runs inside a submission's kernel, beside the student's code.

Never imported: checks.py sends it compiled, before anything of the student's runs. A
`Guard` takes note of the library's functions as they are then and tells what they are
later; the two are compared outside the kernel.
"""

import builtins
import importlib
import json
import sys
import types

# What checks lean on; genlib's modules and what the assignment imports come on top.
WATCHED = (
    "builtins marshal math operator random statistics collections itertools functools "
    "numpy numpy.linalg torch torch._C torch._C._nn torch._tensor torch.autograd "
    "torch.autograd.functional torch.distributions torch.func torch.linalg torch.nn "
    "torch.nn.functional torch.nn.init torch.overrides torch.testing"
).split()
LAZY = {"manual_seed"}  # what torch itself replaces when an optimiser is first made
METHODS = (
    type,
    types.BuiltinFunctionType,
    types.ClassMethodDescriptorType,
    types.FunctionType,
    types.GetSetDescriptorType,
    types.MethodDescriptorType,
    types.ModuleType,
    types.WrapperDescriptorType,
    classmethod,
    property,
    staticmethod,
)


def token(thing):
    """What tells an object from another, and a function from itself with other code."""
    function = getattr(thing, "__func__", thing)
    if isinstance(function, types.FunctionType):
        return id(thing), id(function.__code__), id(function.__defaults__)
    if isinstance(thing, property):
        return id(thing), id(thing.fget)
    return id(thing)


def digest(names):
    """Name -> token, of the functions, classes and modules in a dictionary."""
    return {
        name: token(thing)
        for name, thing in sorted(names.items())
        if isinstance(thing, METHODS) and name not in LAZY
    }


class Guard:
    def __init__(self, imports, shell):
        for name in imports:
            try:
                importlib.import_module(name)
            except ImportError:
                pass  # a name that is no module: from torch import nan
        self.shell = shell
        self.kept = {}  # names that the course's own cells have defined
        loaded = [n for n in sys.modules if n.partition(".")[0] == "genlib"]
        names = {*WATCHED, *imports, *loaded} & set(sys.modules)
        torch = sys.modules.get("torch")
        self.values = (float, int, complex, str) + ((torch.Tensor,) if torch else ())
        self.trusted = {kind for value in self.values for kind in family(value)}
        self.places = {}  # label -> what has the names: a module or a class
        for name in sorted(names):
            module = sys.modules[name]
            self.places[name] = module
            for thing in list(vars(module).values()):
                if isinstance(thing, type) and inside(thing):
                    self.places[f"{thing.__module__}.{thing.__qualname__}"] = thing
        for part in (shell, getattr(shell, "kernel", None), shell.compile):
            for kind in type(part).__mro__[:-1]:
                self.places[f"{kind.__module__}.{kind.__qualname__}"] = kind
        self.names = {k: frozenset(digest(vars(p))) for k, p in self.places.items()}

    def mark(self, names, space):
        """JSON: label -> a number that changes when what lies there does.

        names: those that a check has used, in the namespace `space`.
        """
        marks = {"names that the check uses": self.wrong(names, space)}
        hidden = set(vars(builtins))
        for label, place in self.places.items():
            now = digest(vars(place))
            known = self.names[label]
            if isinstance(place, types.ModuleType):  # may grow, but hide nothing
                now = {n: t for n, t in now.items() if n in known or n in hidden}
            marks[label] = hash(tuple(now.items()))
        for part in (self.shell, self.shell.kernel):
            kind = type(part)
            marks[f"{kind.__qualname__} itself"] = hash(
                tuple(n for n in sorted(vars(part)) if callable(getattr(kind, n, None)))
            )
        marks["sys.settrace"] = id(sys.gettrace())
        marks["sys.setprofile"] = id(sys.getprofile())
        torch = sys.modules.get("torch")
        if torch:
            marks["torch's function modes"] = torch._C._len_torch_function_stack()
        return json.dumps(marks)

    def isinstance(self, thing, kinds):
        """For checks: a number or tensor of a class that came later is none."""
        if isinstance(thing, self.values) and type(thing) not in self.trusted:
            return False
        return isinstance(thing, kinds)

    def keep(self, names, space):
        """Remember functions, classes and modules that a cell of the course made."""
        for name in names:
            thing = space.get(name)
            if callable(thing) or isinstance(thing, types.ModuleType):
                self.kept[name] = thing

    def restore(self, names, space):
        """Give a check's names the meaning that the course's cells gave them."""
        for name in names:
            if name in self.kept:
                space[name] = self.kept[name]
            elif hasattr(builtins, name):
                space.pop(name, None)  # a builtin, hidden by a name of the student's

    def wrong(self, names, space):
        """How many of a check's names mean something else since `restore`."""
        return sum(
            space.get(name) is not self.kept[name]
            if name in self.kept
            else name in space and hasattr(builtins, name)
            for name in names
        )


def family(kind):
    """A class and all that there is of its subclasses."""
    found, todo = set(), [kind]
    while todo:
        one = todo.pop()
        if one not in found:
            found.add(one)
            todo += type.__subclasses__(one)
    return found


def inside(kind):
    """Whether a class is of the libraries that are watched."""
    return str(kind.__module__).partition(".")[0] in ("torch", "genlib", "numpy")
