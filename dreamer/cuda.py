"""What is special to a GPU: a launch is dear, so a whole function becomes one, and nobody waits for a transfer.

A CUDA graph repeats the same kernels upon the same addresses. So tensors come in and go out through buffers that stay,
and whatever else differs from call to call lives on the device: the optimiser's count, and the state of the random
numbers' generator, which the graph advances at each replay. What takes long runs aside, and is waited for where its
results are read.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as tree

WARM_UPS = 3  # calls before capturing, in which libraries allocate what they keep


class Captured:
    """A function of nested tensors as one CUDA graph.

    Args:
        function: takes and returns tensors, also nested in dictionaries and named tuples; asks the device for nothing,
            and reads and writes all else that it uses in place.
        arguments: to warm up and capture with, on the device of `generator`; after them everything is as before but
            for what the function itself writes. Those of later calls have the same shapes.
        generator: of its random numbers.
        urgent: where both wait, its kernels go before those of others that run beside it.

    On another device than a GPU the function is called upon the same buffers, so that the rest can be tested there.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        generator: torch.Generator,
        urgent: bool = False,
    ):
        values, self._form = tree.tree_flatten(arguments)
        self._inputs: list[Tensor] = [value.clone() for value in values]
        self._function = function
        self._graph: torch.cuda.CUDAGraph | None = None
        if generator.device.type == "cuda":
            self._capture(generator, urgent)

    def _capture(self, generator: torch.Generator, urgent: bool) -> None:
        gc.collect()  # a loss that is kept somewhere would hold the gradients' nodes on the stream that it was made on
        before = generator.get_state()
        # Streams of another priority are others: graphs that run side by side must not share one, nor its workspaces.
        stream = torch.cuda.Stream(priority=-1 if urgent else 0)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self._call()
        torch.cuda.current_stream().wait_stream(stream)
        generator.set_state(before)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(generator)
        current = torch.cuda.current_stream()
        cause: BaseException | None = None
        try:
            with torch.cuda.graph(graph, stream=stream):
                try:
                    self._outputs = self._call()
                except BaseException as error:
                    cause = error
                    raise
        except BaseException as error:
            torch.cuda.set_stream(current)
            # What has broken the capture comes before what is said of a broken one.
            raise (cause or error) from None
        self._graph = graph

    def _call(self) -> Any:
        return self._function(*tree.tree_unflatten(self._inputs, self._form))

    def accepts(self, *arguments: Any) -> bool:
        """Whether these have the shapes that it was captured with."""
        values, form = tree.tree_flatten(arguments)
        return form == self._form and all(
            value.shape == own.shape and value.dtype == own.dtype for value, own in zip(values, self._inputs)
        )

    def __call__(self, *arguments: Any) -> Any:
        """The function's result, in tensors that later calls leave alone."""
        assert self.accepts(*arguments), "not what was captured"
        for own, value in zip(self._inputs, tree.tree_flatten(arguments)[0]):
            own.copy_(value, non_blocking=True)
        if self._graph is None:
            self._outputs = self._call()
        else:
            self._graph.replay()
        return tree.tree_map(torch.clone, self._outputs)


class Aside:
    """A second queue of a GPU: what is launched while it is begun runs beside what is launched afterwards.

    It begins once all that was launched before is done. Afterwards nothing waits for more of it than what came before
    `release`, or for all of it where nothing was released; whoever needs its results launches that aside as well, or
    waits. On another device than a GPU all of this does nothing.
    """

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._released: torch.cuda.Event | None = None

    @contextmanager
    def begin(self) -> Iterator[None]:
        if self._stream is None:
            yield
            return
        outside = torch.cuda.current_stream()
        self._stream.wait_stream(outside)
        self._released = None
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            outside.wait_event(self._released or self._stream.record_event())

    def release(self) -> None:
        """What is launched aside from now on is not waited for."""
        if self._stream is not None:
            self._released = self._stream.record_event()


def finish(device: torch.device) -> None:
    """Wait for all that was launched, aside or not."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def moved(value: Tensor, device: torch.device) -> Tensor:
    """To a device; to a GPU by way of pinned memory, so that what was sent there before need not be done."""
    if device.type == "cuda" and value.device.type == "cpu":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)


def fetch(values: Sequence[Tensor], device: torch.device) -> Callable[[], list[Tensor]]:
    """Begin to move some tensors to a device; what is returned gives them there, and waits for them if it must."""
    if device.type == "cuda" or not any(value.device.type == "cuda" for value in values):
        here = [moved(value, device) for value in values]
        return lambda: here
    pinned = [torch.empty(value.shape, dtype=value.dtype, pin_memory=True) for value in values]
    for copy, value in zip(pinned, values):
        copy.copy_(value, non_blocking=True)
    done = torch.cuda.Event()
    done.record()

    def arrived() -> list[Tensor]:
        done.synchronize()
        return pinned

    return arrived
