"""The products that a server evaluates: they wait for a free process, and end when their client has gone."""

import asyncio
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from .protocol import Limits
from .worker import CancelledError, EvaluationError, RefusedError, TooLongError, Workers

LOOK = 0.2  # seconds after which the client of a product is looked for again

_log = logging.getLogger(__name__)


class ProductQueue:
    """Products in the processes of `Workers`, at most `workers` at a time."""

    def __init__(self, processes: Workers, workers: int, limits: Limits) -> None:
        self.processes, self.limits = processes, limits
        self._free = asyncio.Semaphore(workers)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="evaluation")

    def close(self) -> None:
        """End all evaluations and their processes."""
        self.processes.close()
        self._threads.shutdown(cancel_futures=True)

    async def evaluated(self, request: Request, deadline: float, *job: Any) -> bytes:
        """Evaluate once a process is free; the product of a client that has gone is cancelled."""
        await self._free_process(request, deadline)
        cancelled = threading.Event()
        try:
            evaluate: Any = self.processes.evaluate
            running = asyncio.get_running_loop().run_in_executor(self._threads, evaluate, *job, cancelled)
            while not (await asyncio.wait({running}, timeout=LOOK))[0]:
                if time.monotonic() > deadline or await request.is_disconnected():
                    cancelled.set()
            result: bytes = await running
            return result
        except RefusedError as error:
            raise HTTPException(422, str(error)) from None
        except CancelledError:
            if time.monotonic() > deadline:
                raise self._too_long() from None
            raise ClientDisconnect from None
        except TooLongError as error:
            raise HTTPException(504, str(error)) from None
        except EvaluationError as error:
            _log.error("%s", error)
            raise HTTPException(500, str(error)) from None
        finally:
            self._free.release()

    async def _free_process(self, request: Request, deadline: float) -> None:
        """Wait for a free process, as long as the client waits too."""
        waiting = asyncio.ensure_future(self._free.acquire())
        try:
            while not (await asyncio.wait({waiting}, timeout=LOOK))[0]:
                if time.monotonic() > deadline:
                    raise self._too_long()
                if await request.is_disconnected():
                    raise ClientDisconnect
            if await request.is_disconnected():
                raise ClientDisconnect
        except BaseException:
            if not waiting.cancel():  # it had been free already
                self._free.release()
            raise

    def _too_long(self) -> HTTPException:
        return HTTPException(504, f"the request took longer than {self.limits.request_seconds:g} s")
