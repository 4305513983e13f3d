"""What is measured in a round: learning, bits on each tier, and seconds."""

from hmtl.communication import SETUP, TIERS, Communicator, Outcome
from hmtl.training.engine import RoundResult
from hmtl.training.history import Measurements


def measure_round(
    number: int, communicator: Communicator, outcome: Outcome, result: RoundResult, bits_before: float
) -> Measurements:
    """Return the row of the round that has just ended.

    Bits are all that was sent, payload and overhead. Seconds of nodes are CPU time (see `hmtl.cpu_time`); seconds of
    communication follow from the bits on each link (Hu et al. 2022, eqs. (12), (13)).

    Args:
        number: the round.
        communicator: what carried the messages of the round.
        outcome: how the round ended.
        result: what the processes measured in it.
        bits_before: bits of the set-up and of the earlier rounds.

    Returns:
        `round`; `users`, the number of users whose IVs counted; `empty`, 1 if nobody aggregated; objective and errors,
        if the round is evaluated; `bits/TIER` for each tier; `bits_total` so far; `local_s`, the time of the slowest
        user's local update; `compute_s`, which adds the time of the slowest relay, the server, planning and the global
        update; `communication_s`; `uncoded_s`, the total time if the same round were uncoded, and
        `uncoded_communication_s`, its communication.
    """
    watch, ledger = communicator.stopwatch, communicator.ledger
    learning_s = result.user_seconds + watch.slowest("global update")
    coding_s = [watch.slowest(who) for who in ("relay", "server", "planning")]
    sent = {tier: ledger.bits(tier, round=-1).total for tier in TIERS}
    uncoded = communicator.uncoded_seconds()
    return {
        "round": number,
        "users": result.users,
        "empty": int(outcome.empty),
        **result.figures,
        **{f"bits/{tier}": bits for tier, bits in sent.items()},
        "bits_total": bits_before + sum(sent.values()),
        "local_s": result.user_seconds,
        "compute_s": learning_s + sum(coding_s),
        "communication_s": communicator.seconds(),
        "uncoded_s": learning_s + uncoded,
        "uncoded_communication_s": uncoded,
    }


def setup_bits(communicator: Communicator) -> int:
    """Return the number of bits sent before the first round."""
    return sum(communicator.ledger.bits(tier, round=SETUP).total for tier in TIERS)
