"""How much of a member's writes may be with the leader: what is counted, and what a lost connection changes."""

from __future__ import annotations

from kvserver.node.forward_window import ForwardWindow


def test_what_fits_goes_and_the_rest_when_something_was_given_back() -> None:
    window = ForwardWindow(lambda: 100)
    ticket = window.take(60)
    assert window.fits(40)
    assert not window.fits(41)
    window.give(60, ticket)
    assert window.fits(100)


def test_one_always_goes_however_large() -> None:
    window = ForwardWindow(lambda: 100)
    assert window.fits(1000)
    window.take(1000)
    assert not window.fits(1)


def test_the_bound_is_asked_for_each_time() -> None:
    bound = [100]
    window = ForwardWindow(lambda: bound[0])
    window.take(80)
    assert not window.fits(80)
    bound[0] = 200
    assert window.fits(80)


def test_what_may_be_lost_counts_no_more_and_its_return_takes_nothing_from_the_others() -> None:
    window = ForwardWindow(lambda: 100)
    lost = window.take(90)
    window.forget()
    assert window.fits(100)
    window.take(70)
    window.give(90, lost)
    assert window.held_bytes == 70
