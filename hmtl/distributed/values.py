"""Values that a controller and cells send each other: numbers, texts, tensors, tasks, and collections of these."""

import io
from collections.abc import Mapping
from typing import Any
from zipfile import ZipFile

import torch

from hmtl.communication.messages import nothing
from hmtl.data.preprocessing import Preprocessing, Scaling
from hmtl.data.table_features import FittedTable, TableFeatures
from hmtl.data.tasks import Prepared, Task
from hmtl.distributed.frames import CONTROL, Frame
from hmtl.errors import CodingError
from hmtl.training.engine import Values

torch.serialization.add_safe_globals([Task, Prepared, Preprocessing, Scaling, FittedTable, TableFeatures])


def as_frame(values: Mapping[str, Any], number: int) -> Frame:
    """Return a frame that carries values."""
    return Frame(CONTROL, 0, torch.frombuffer(to_bytes(values), dtype=torch.uint8)[None], nothing(1), number=number)


def of_frame(frame: Frame) -> Values:
    """Return the values in a frame.

    Raises:
        CodingError: they cannot be read.
    """
    try:
        return from_bytes(frame.payload.numpy()[0].data)
    except Exception as error:  # torch raises various ones
        raise CodingError(f"it sent control values that cannot be read ({type(error).__name__})") from error


def to_bytes(values: Mapping[str, Any]) -> memoryview:
    """Return named values as bytes."""
    content = io.BytesIO()
    torch.save(dict(values), content)
    return content.getbuffer()


def from_bytes(content: bytes | memoryview) -> Values:
    """Return the values that `to_bytes` encoded; nothing in them is executed, or larger than `content`."""
    archive = io.BytesIO(content)
    if sum(each.file_size for each in ZipFile(archive).infolist()) > len(content):
        raise CodingError("these values are compressed")
    archive.seek(0)
    return dict(torch.load(archive, weights_only=True))
