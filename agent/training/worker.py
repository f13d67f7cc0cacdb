"""The training worker's process: `python -m agent.training.worker CHANNEL`, where CHANNEL is an inherited descriptor.

It shuts itself in before anything foreign, or any large library, is loaded. Data and model come over the channel as
read-only descriptors, vectors pass through shared memory; it ends with the agent's end of the channel.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
import traceback

from agent.training.channel import ChannelClosedError, receive_descriptors, receive_message, send_message


def main(arguments: list[str]) -> int:
    """Run until the agent closes the channel; returns the exit status."""
    channel = socket.socket(fileno=int(arguments[0]))
    try:
        data_fd, *model_fds = receive_descriptors(channel)
        start = receive_message(channel)
        # Imported here, so that a missing seccomp library is reported like any other failure to shut in.
        from agent.training.isolation import isolate  # noqa: PLC0415 (see above)

        layers = isolate(memory_bytes=int(str(start["memory_bytes"])))
    except ChannelClosedError:
        return 0
    except (ImportError, RuntimeError) as error:
        send_message(channel, {"not_isolated": f"{type(error).__name__}: {error}"[:500]})
        return 1
    threading.Thread(target=_end_with_channel, args=(channel,), daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = str(start["threads"])  # read when the libraries are loaded
    # Gradients by row load torch's compiler, which wants a directory, and which nothing here ever uses.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = sys.prefix
    model_fd, vector_fd = model_fds or (-1, -1)
    # Only now: these read foreign bytes, and load what can be led astray by them.
    from agent.training.session import serve  # noqa: PLC0415 (see above)

    try:
        serve(channel, start, layers=layers, model_fd=model_fd, data_fd=data_fd, vector_fd=vector_fd)
    except ChannelClosedError:
        return 0
    return 0


def _end_with_channel(channel: socket.socket) -> None:
    """End when the agent's end of the channel is gone, also in mid-training.

    The kernel's own signal for this (PR_SET_PDEATHSIG) will not do: it comes when the thread that started the worker
    ends, and that is no reason to stop.
    """
    poll = select.poll()
    poll.register(channel, select.POLLRDHUP | select.POLLHUP)
    poll.poll()
    os._exit(0)


def _show_failure(kind: type[BaseException], _: BaseException, trace: object) -> None:
    """Show where something failed and its kind, but not its message: that may quote a patient's value."""
    frames = "".join(traceback.format_tb(trace))  # type: ignore[arg-type]  # an excepthook's third argument
    sys.stderr.write(f"{frames}{kind.__name__}\n")


if __name__ == "__main__":
    sys.excepthook = _show_failure
    sys.exit(main(sys.argv[1:]))
