import pytest

from hmtl.distributed.placement import Placement
from hmtl.errors import ConfigError


def test_nodes_are_numbered_as_server_relays_hosts_and_hosts_share_users_evenly() -> None:
    placement = Placement(rank=5, size=6, K=7, H=3)
    assert placement.names == ["server", "relay 0", "relay 1", "relay 2", "host 0", "host 1"]
    assert (placement.name, placement.users.tolist()) == ("host 1", [4, 5, 6])
    assert placement.users_of("host 0").tolist() == [0, 1, 2, 3]
    assert not len(placement.users_of("relay 1"))


def test_relays_and_hosts_exchange_frames_with_all_but_their_own_kind() -> None:
    neighbors = [Placement(rank, 6, 7, 3).neighbors for rank in range(6)]
    assert set(neighbors[0].values()) == {1, 2, 3, 4, 5}
    assert neighbors[2] == {"server": 0, "host 0": 4, "host 1": 5}
    assert neighbors[4] == {"server": 0, "relay 0": 1, "relay 1": 2, "relay 2": 3}


@pytest.mark.parametrize("size", [4, 12])
def test_too_few_or_too_many_processes_are_refused(size: int) -> None:
    with pytest.raises(ConfigError, match="5 to 11"):
        Placement(0, size, K=7, H=3)
