import pytest
import torch

from llm_mde import dist, launcher
from llm_mde.errors import ConfigError

SLURM = {
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "2",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NODELIST": "gpu[03-04],gpu09",
}


def test_plain_python_is_rank_0_of_1_at_a_free_port():
    filled = launcher.launcher_variables({"HOME": "/root"})
    assert 0 < int(filled.pop("MASTER_PORT")) < 65536
    assert filled == {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
    }


def test_variables_of_a_launcher_stay_as_they_are():
    given = {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "node7",
        "MASTER_PORT": "29500",
    }
    assert launcher.launcher_variables(given) == given
    assert launcher.launcher_variables(SLURM | given) == given


def test_slurm_step_meets_at_its_first_node():
    filled = launcher.launcher_variables(SLURM)
    assert filled == {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "gpu03",
        "MASTER_PORT": str(12000 + (123456 + 2) % 20000),
    }
    other = launcher.launcher_variables(SLURM | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"})
    assert other["MASTER_ADDR"] == filled["MASTER_ADDR"]
    assert other["MASTER_PORT"] == filled["MASTER_PORT"]


def test_shell_of_an_allocation_is_one_process():
    shell = SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}
    assert launcher.launcher_variables(shell)["WORLD_SIZE"] == "1"
    batch_script = {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}
    assert launcher.launcher_variables(batch_script)["WORLD_SIZE"] == "1"


def test_several_ranks_without_a_meeting_point_are_refused():
    with pytest.raises(ConfigError, match="^MASTER_PORT: expected the port of rank 0 of 2 ranks"):
        launcher.launcher_variables({"RANK": "1", "WORLD_SIZE": "2"})


def test_ranks_of_a_host_share_its_cores():
    def share(cores, **found):
        return launcher.threads(found, cores=cores)

    assert share(8, WORLD_SIZE="4") == 2
    deepspeed = {"WORLD_SIZE": "16", "LOCAL_SIZE": "2"}
    assert share(8, **deepspeed) == 4
    assert share(8, **deepspeed, LOCAL_WORLD_SIZE="8") == 1
    assert share(2, WORLD_SIZE="16") == 1


def test_a_task_of_slurm_has_the_cores_it_was_given():
    task = {"WORLD_SIZE": "16", "SLURM_STEP_NUM_TASKS": "16", "SLURM_STEP_TASKS_PER_NODE": "8(x2)"}
    assert launcher.threads(task | {"SLURM_CPUS_PER_TASK": "6"}, cores=6) == 6  # bound to them
    assert launcher.threads(task | {"SLURM_CPUS_PER_TASK": "6"}, cores=48) == 6  # or not
    assert launcher.threads(task, cores=48) == 6
    uneven = task | {"SLURM_STEP_TASKS_PER_NODE": "4(x3),12"}
    assert launcher.threads(uneven, cores=48) == 4
    # torchrun as the one task of each node: its ranks share what it has.
    nodes = task | {"SLURM_CPUS_PER_TASK": "48", "LOCAL_WORLD_SIZE": "8"}
    assert launcher.threads(nodes, cores=48) == 6


@pytest.mark.parametrize(
    ("nodelist", "first"),
    [
        ("big3", "big3"),
        ("a1,a2", "a1"),
        ("gpu[01-04,07],big3", "gpu01"),
        ("gpu[7]", "gpu7"),
        ("rack[2,5]n[3-8]", "rack2n3"),
    ],
)
def test_first_host_of_a_nodelist(nodelist, first):
    assert launcher.first_host(nodelist) == first


def test_one_process_needs_no_group():
    assert (dist.rank(), dist.world()) == (0, 1)
    values = torch.tensor([1.0])
    total = dist.all_reduce_sum(values)
    assert total.tolist() == [1.0]
    assert total is not values
    assert dist.from_rank_0("mine") == "mine"
    assert dist.all_agree(True)
    assert not dist.all_agree(False)


def test_free_ports_can_be_used():
    assert 1024 <= launcher.free_port() < 65536


@pytest.mark.parametrize("address", ["a..b:6379", "127.0.0.1:1", "[::1]:1", "127.0.0.1:99999"])
def test_a_cluster_that_does_not_answer_is_named(address):
    with pytest.raises(ConfigError, match=r"--ray .*: no Ray cluster answers there .* or wait$"):
        launcher.check_cluster(address, option="--ray", otherwise="wait")


def test_addresses_that_only_ray_can_read_are_left_to_it():
    for address in ("auto", "local", "ray://127.0.0.1:1", "127.0.0.1"):
        launcher.check_cluster(address, option="--ray", otherwise="wait")
