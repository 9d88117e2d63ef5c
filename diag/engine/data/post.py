"""Messages from rank 0 to each rank: Python values whose tensors travel as they lie in memory."""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from diag.engine.process import Process

_ALIGNMENT = 64


@dataclass(frozen=True)
class _Slot:
    """Where in the packet a tensor lies, in bytes."""

    dtype: torch.dtype
    shape: torch.Size
    start: int
    num_bytes: int


class _Packet:
    """A message laid out: the length of its head (8 bytes), the head, the tensors' bytes."""

    def __init__(self, message: Any) -> None:
        body = io.BytesIO()
        pickler = _Pickler(body)
        pickler.dump(message)
        self._tensors = pickler.tensors
        slots, size = [], 0
        for tensor in self._tensors:
            num_bytes = tensor.numel() * tensor.element_size()
            slots.append(_Slot(tensor.dtype, tensor.shape, size, num_bytes))
            size = _aligned(size + num_bytes)
        self._slots = slots
        self._head = pickle.dumps((slots, body.getvalue()), pickle.HIGHEST_PROTOCOL)
        self._data_start = _aligned(8 + len(self._head))
        self.size = self._data_start + size

    def write(self, buffer: Tensor) -> Tensor:
        head = len(self._head).to_bytes(8, "little") + self._head
        buffer[: len(head)] = torch.frombuffer(bytearray(head), dtype=torch.uint8)
        for slot, tensor in zip(self._slots, self._tensors, strict=True):
            start = self._data_start + slot.start
            buffer[start : start + slot.num_bytes] = tensor.contiguous().view(-1).view(torch.uint8)
        return buffer


class _Pickler(pickle.Pickler):
    """Leaves plain tensors out, wherever in the message they are, and keeps them."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []

    def persistent_id(self, value: Any) -> int | None:
        if type(value) is not Tensor or value.layout is not torch.strided or value.is_quantized:
            return None
        self.tensors.append(value.detach().resolve_conj().resolve_neg())
        return len(self.tensors) - 1


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(file)
        self.tensors = tensors

    def persistent_load(self, index: int) -> Tensor:
        return self.tensors[index]


def hand_out(process: Process, messages: list[Any] | None, device: torch.device) -> Any:
    """Give each rank one message; on rank 0 `messages`, by rank. Collective, blocking.

    Args:
        device: where the received tensors are wanted.

    Returns:
        This rank's message; rank 0's is the very object it gave.
    """
    wire = process.device if process.backend == "nccl" else torch.device("cpu")
    packets = [] if messages is None else [_Packet(message) for message in messages[1:]]
    size = torch.tensor(max((packet.size for packet in packets), default=0), device=wire)
    dist.broadcast(size, src=0)
    received = torch.empty(int(size), dtype=torch.uint8, device=wire)
    if messages is None:
        dist.scatter(received, src=0)
        return _read(received, device)
    written = [packet.write(torch.empty(int(size), dtype=torch.uint8)) for packet in packets]
    dist.scatter(received, [received, *(packet.to(wire) for packet in written)], src=0)
    return messages[0]


def _read(buffer: Tensor, device: torch.device) -> Any:
    length = int.from_bytes(bytes(buffer[:8].tolist()), "little")
    slots, body = pickle.loads(buffer[8 : 8 + length].cpu().numpy().tobytes())
    data = buffer[_aligned(8 + length) :]
    tensors = [_tensor(data, slot, device) for slot in slots]
    return _Unpickler(io.BytesIO(body), tensors).load()


def _tensor(data: Tensor, slot: _Slot, device: torch.device) -> Tensor:
    # A copy, so that one tensor kept does not keep the whole packet.
    raw = data[slot.start : slot.start + slot.num_bytes].to(device, copy=True)
    tensor: Tensor = raw.view(slot.dtype).view(slot.shape)
    return tensor


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
