"""What options may say of networks that are recognised from their files."""

from __future__ import annotations

import pytest

from basicsr.config.load import load_options
from basicsr.utils.errors import OptionsError

EDSR = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "upscale": 2}
AUTO = {"type": "auto"}
DATASET = {"type": "PairedImageDataset", "name": "d", "dataroot_gt": "gt", "dataroot_lq": "lq"}
DATASET |= {"io_backend": {"type": "disk"}}
TRAIN = {
    "name": "n",
    "model_type": "KDModel",
    "scale": 2,
    "datasets": {"train": {**DATASET, "gt_size": 32}},
    "network_g": EDSR,
    "network_t": EDSR,
    "path": {"pretrain_network_g": "g.pth", "pretrain_network_t": "t.pth"},
    "train": {"total_iter": 1, "optim_g": {"type": "Adam"}, "resp_kd_opt": {"type": "L1Loss"}},
}
TEST = {"name": "n", "scale": 2, "datasets": {"test": DATASET}}


def load(options, training):
    return load_options(options, training=training, paths=False)


@pytest.mark.parametrize("label", ["network_g", "network_t"])
def test_networks_of_a_training_may_be_recognised_from_the_file_that_they_need(label):
    assert load({**TRAIN, label: AUTO}, True)
    without = {**TRAIN, label: AUTO, "path": {"allow_random_teacher": True}}
    with pytest.raises(OptionsError, match=rf"path.pretrain_{label}: is required by {label} type: auto"):
        load(without, True)


@pytest.mark.parametrize(
    "row",
    [{"path": "n.pth"}, {"path": "n.pth", "network": AUTO}],
    ids=["no network", "auto"],
)
def test_rows_of_a_test_are_recognised_where_nothing_names_their_network(row):
    assert load({**TEST, "networks": {"row": row}}, False).networks["row"].path == "n.pth"


def test_a_row_needs_its_file_in_any_case():
    with pytest.raises(OptionsError, match=r"networks.row.path: is required"):
        load({**TEST, "networks": {"row": {"network": AUTO}}}, False)


def test_the_network_of_a_test_may_be_recognised_from_the_file_that_it_needs():
    assert load({**TEST, "network_g": AUTO, "path": {"pretrain_network_g": "n.pth"}}, False)
    with pytest.raises(OptionsError, match=r"path.pretrain_network_g: is required"):
        load({**TEST, "network_g": AUTO}, False)


def test_auto_takes_no_other_keys():
    with pytest.raises(OptionsError) as caught:
        load({**TRAIN, "network_t": {**AUTO, "num_feat": 64, "upscale": 3}}, True)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3 and all("means nothing beside type: auto" in line for line in lines[1:])
    row = {"path": "n.pth", "network": {**AUTO, "num_feat": 64}}
    with pytest.raises(OptionsError, match=r"networks.row.network.num_feat: means nothing beside type: auto"):
        load({**TEST, "networks": {"row": row}}, False)


def test_a_discriminator_is_named():
    with pytest.raises(OptionsError, match=r"network_d.type: no network is called 'auto'"):
        load({**TRAIN, "network_d": AUTO}, True)
