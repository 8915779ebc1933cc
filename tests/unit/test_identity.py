from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import UID

from dicom_node.attributes.identity import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    MODEL_NAME,
    derived_identity,
    is_own_output,
    is_valid_uid,
)


def test_derived_uids_are_the_same_on_every_host_and_in_every_release():
    identity = derived_identity("1.2.3", "1.2", "2.25.7", "strength=1.0")
    assert identity.sop_instance_uid == "2.25.93469366394801594831191853071903446285"
    assert identity.series_instance_uid == "2.25.238960778042930506984652038121192566043"


@pytest.mark.parametrize("position", range(4))
def test_every_input_that_changes_pixels_changes_the_instance_uid(position):
    inputs = ["1.2.3", "1.2", "2.25.7", "strength=1.0"]
    changed = [*inputs]
    changed[position] += "1"
    first, second = derived_identity(*inputs), derived_identity(*changed)
    if position == 1:  # the source instance UID alone names the source's pixels
        assert first.sop_instance_uid == second.sop_instance_uid
    else:
        assert first.sop_instance_uid != second.sop_instance_uid


def test_instances_of_one_source_series_share_the_derived_series():
    one = derived_identity("1.2.3", "1.2", "2.25.7", "x")
    other = derived_identity("1.2.4", "1.2", "2.25.7", "x")
    assert one.series_instance_uid == other.series_instance_uid


@given(st.text(), st.text(), st.text(), st.text())
def test_derived_uids_are_valid_for_any_input(instance, series, device, fingerprint):
    identity = derived_identity(instance, series, device, fingerprint)
    for uid in (identity.sop_instance_uid, identity.series_instance_uid):
        assert is_valid_uid(uid)
        assert UID(uid).is_valid


def test_implementation_identification_fits_its_value_representations():
    assert IMPLEMENTATION_CLASS_UID.is_valid
    assert 1 <= len(IMPLEMENTATION_VERSION_NAME) <= 16


@pytest.mark.parametrize(
    "value",
    ["", ".", "..", "1..2", "1.2.", ".1", "1/2", "1.2\n", "1.2 ", "../1", "a.1", "1" * 65, None, 1],
)
def test_what_cannot_name_a_file_safely_is_no_uid(value):
    assert not is_valid_uid(value)


@pytest.mark.parametrize("value", ["1.2.840.10008.1.1", "2.25.0", "1", "1.02.3", "1" * 64])
def test_uids_of_real_scanners_are_valid(value):
    assert is_valid_uid(value)


def contributed(code: str = "109102", scheme: str = "DCM", model: str = MODEL_NAME) -> Dataset:
    purpose, item, dataset = Dataset(), Dataset(), Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator = code, scheme
    item.PurposeOfReferenceCodeSequence = [purpose]
    item.ManufacturerModelName = model
    scanner = Dataset()
    scanner.ManufacturerModelName = "Scanner"
    dataset.ContributingEquipmentSequence = [scanner, item]
    return dataset


def test_own_output_is_recognised_by_its_processing_equipment():
    assert is_own_output(contributed())


@pytest.mark.parametrize(
    "dataset",
    [
        Dataset(),
        contributed(code="109101"),
        contributed(scheme="99LOCAL"),
        contributed(model="another product"),
    ],
)
def test_other_objects_are_not_taken_for_own_output(dataset):
    assert not is_own_output(dataset)
