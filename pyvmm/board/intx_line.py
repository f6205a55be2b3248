"""INTx of a device of this host: the three ways from its eventfd to a pin of the guest's interrupt controllers, and
back when the guest has ended the interrupt. See vfio.host.IntxLine."""

from __future__ import annotations

import os
from collections.abc import Callable

from pyvmm.board.eventfd import high_eventfd, taken
from pyvmm.board.irqchip import Irqchip
from pyvmm.loop import Loop


class KernelLine:
    """INTx by irqfd: KVM raises the line when the device signals, and lets VFIO unmask it when the guest has ended the
    interrupt (KVM_IRQFD_FLAG_RESAMPLE). Nothing of ours runs."""

    is_up = False

    def __init__(self, irqchip: Irqchip, pirq: int) -> None:
        self._irqchip = irqchip
        self._pirq = pirq
        self.trigger = high_eventfd()
        self.unmask: int | None = high_eventfd()
        try:
            irqchip.resample(pirq, self.trigger, self.unmask)
        except OSError:
            self._close_eventfds()
            raise

    def close(self) -> None:
        self._irqchip.resample_no_more(self._pirq, self.trigger)
        self._close_eventfds()

    def _close_eventfds(self) -> None:
        os.close(self.trigger)
        if self.unmask is not None:
            os.close(self.unmask)


class RelayLine:
    """INTx as KernelLine, but both ways by the loop, for somebody who watches: the device's signal is *seen* and handed
    on to the irqfd, the end of the interrupt is seen and *ended* told of it."""

    unmask: int | None = None

    def __init__(
        self, loop: Loop, irqchip: Irqchip, pirq: int, ended: Callable[[], None], seen: Callable[[str], None]
    ) -> None:
        self._loop = loop
        self._inner = KernelLine(irqchip, pirq)
        self._ended = ended
        self._seen = seen
        self.is_up = False
        try:
            self.trigger = high_eventfd()
        except OSError:
            self._inner.close()
            raise
        assert self._inner.unmask is not None
        loop.add(self.trigger, self._signalled)
        loop.add(self._inner.unmask, self._guest_ended)

    def _signalled(self) -> None:
        if taken(self.trigger):
            self.is_up = True
            self._seen("INTx up, by the loop")
            os.eventfd_write(self._inner.trigger, 1)

    def _guest_ended(self) -> None:
        if self._inner.unmask is not None and taken(self._inner.unmask):
            self._ended()
            self.is_up = False

    def close(self) -> None:
        self._loop.remove(self.trigger)
        if self._inner.unmask is not None:
            self._loop.remove(self._inner.unmask)
        os.close(self.trigger)
        self._inner.close()


class LoopLine:
    """INTx by the loop, where PIC or IOAPIC are ours: they say when the guest has ended an interrupt."""

    unmask: int | None = None
    is_up = False

    def __init__(
        self, loop: Loop, irqchip: Irqchip, pirq: int, raised: Callable[[], None], ended: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._irqchip = irqchip
        self._pirq = pirq
        self._raised = raised
        self._ended = ended
        self.trigger = high_eventfd()
        loop.add(self.trigger, self._signalled)
        irqchip.ended[pirq].append(ended)

    def _signalled(self) -> None:
        if taken(self.trigger):
            self._raised()

    def close(self) -> None:
        self._irqchip.ended[self._pirq].remove(self._ended)
        self._loop.remove(self.trigger)
        os.close(self.trigger)
