"""State that grows with the data: it copies, moves between devices, pickles, and saves to files."""

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

S = TypeVar("S", bound="State")

_CHECKSUM = "sha256"


class State:
    """Base of the classes that hold a decomposition of data seen so far.

    A subclass names the attributes that make up its state: tensors, plain values, lists and tuples
    of them. What it does with them is functional: an update that fails leaves them as they were.
    """

    _FIELDS: ClassVar[tuple[str, ...]]

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the whole state: tensors and plain values, with a checksum.

        ``torch.save`` writes it, and ``torch.load(..., weights_only=True)`` reads it again.

        Returns
        -------
        dict
        """
        state = {name: _mapped(getattr(self, "_" + name), Tensor.clone) for name in self._FIELDS}
        state["kind"] = type(self).__name__
        state[_CHECKSUM] = _checksum(state)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state, settings included, in place of this one.

        Parameters
        ----------
        state : mapping
            What `state_dict` returned. Its tensors are copied.

        Raises
        ------
        ValueError
            The state of another class, one with parts missing or too many, or one that was altered.
            This state is then what it was.
        """
        caller = f"{type(self).__name__}.load_state_dict"
        expected = {*self._FIELDS, "kind", _CHECKSUM}
        if not isinstance(state, Mapping) or set(state) != expected:
            got = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
            raise ValueError(f"{caller}: state must be a dict with {sorted(expected)}, got {got}")
        if state["kind"] != type(self).__name__:
            raise ValueError(f"{caller}: state must be of this class, got one of {state['kind']}")
        if _checksum(state) != state[_CHECKSUM]:
            raise ValueError(f"{caller}: the state was altered: its checksum does not match")
        for name in self._FIELDS:
            setattr(self, "_" + name, _mapped(state[name], Tensor.clone))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a file, which appears whole or not at all.

        Parameters
        ----------
        path : str or path
            A file there is replaced.
        """
        path = Path(path)
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".partial")
        try:
            with os.fdopen(handle, "wb") as file:
                torch.save(self.state_dict(), file)
            os.replace(partial, path)
        except BaseException:
            os.unlink(partial)
            raise

    @classmethod
    def load(cls: type[S], path: str | os.PathLike[str], *, device: Any = "cpu") -> S:
        """Read a state that `save` wrote; no code in the file is run.

        Parameters
        ----------
        path : str or path
        device : torch.device or str
            Where its tensors go.

        Returns
        -------
        An object of this class.

        Raises
        ------
        ValueError
            Not such a file, or one that was truncated or altered.
        OSError
            A file that cannot be read.
        """
        content = io.BytesIO(Path(path).read_bytes())
        self = cls.__new__(cls)
        try:
            self.load_state_dict(torch.load(content, map_location=device, weights_only=True))
        except Exception as error:  # damaged bytes fail anywhere in the reading of an archive
            raise ValueError(
                f"{cls.__name__}.load: {os.fspath(path)} is no state file or a damaged one: {error}"
            ) from error
        return self

    def to(self: S, device: Any) -> S:
        """Move the tensors to a device.

        Parameters
        ----------
        device : torch.device or str

        Returns
        -------
        This object.
        """
        for name in self._FIELDS:
            value = getattr(self, "_" + name)
            setattr(self, "_" + name, _mapped(value, lambda tensor: tensor.to(device)))
        return self


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to the tensors in a value."""
    if isinstance(value, list | tuple):
        return type(value)(_mapped(item, function) for item in value)
    return function(value) if isinstance(value, Tensor) else value


def _checksum(state: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(set(state) - {_CHECKSUM}):
        digest.update(name.encode())
        _digest(state[name], digest)
    return digest.hexdigest()


def _digest(value: Any, digest: Any) -> None:
    """Feed what a value is, and not only its bytes, to a hash."""
    if isinstance(value, list | tuple):
        digest.update(b"%d" % len(value))
        for item in value:
            _digest(item, digest)
    elif isinstance(value, Tensor):
        digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    else:
        digest.update(f"{type(value).__name__} {value!r}".encode())
