"""What lets an exercise answer at once: your value beside the expected one."""

import math


def compare(name, yours, expected, tol=1e-3):
    """Print your answer beside the expected one and say whether they agree.

    `yours` may be a number, a 0-d tensor, a bool or a text, or `None` as long as the
    exercise is open; numbers agree within `tol`, absolute or relative. Returns
    whether they agree.
    """
    if yours is None:
        print(f"{name}: replace None by your answer")
        return False
    if hasattr(yours, "detach"):
        yours = yours.detach()  # else torch warns about its gradient
    is_number = not isinstance(expected, bool | str)
    try:
        right = None if is_number else bool(yours == expected)
        yours = float(yours) if is_number else yours
    except (TypeError, ValueError, RuntimeError):
        kind = type(yours).__name__
        wanted = "number" if is_number else f"{type(expected).__name__} value"
        print(f"{name}: your value is a {kind}; a single {wanted} is expected")
        return False
    if not is_number:
        print(f"{name}: your value {yours}, expected {expected} -> {_word(right)}")
        return right
    expected = float(expected)
    right = math.isclose(yours, expected, rel_tol=tol, abs_tol=tol)
    print(f"{name}: your value {yours:.4g}, expected {expected:.4g} -> {_word(right)}")
    return right


def _word(right):
    return "right" if right else "not yet"
