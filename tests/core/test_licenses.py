"""Names of licences: one form for each, and what the Hub takes."""

import pytest

from hf_llm.core.licenses import HUB_LICENSES, hub_licenses, normalize_license, spdx_identifier, split_licenses


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            ["Apache-2.0", "apache 2.0", "apache", "Apache License, Version 2.0", "apache_2.0", "Apache2", "ASL 2.0"],
            "apache-2.0",
        ),
        (["MIT", "mit", "MIT License", "The MIT License", "Expat", "(mit)"], "mit"),
        (["BSD-3-Clause", "BSD 3-Clause License", "3-Clause BSD License", "New BSD"], "bsd-3-clause"),
        (["BSD", "BSD License"], "bsd"),
        (
            ["GPL-3.0", "GPLv3", "GPL v3", "GPL-3.0-only", "GPL-3.0-or-later", "GPL-3.0+", "GNU GPL v3",
             "GNU General Public License v3 (GPLv3)"],
            "gpl-3.0",
        ),
        (["LGPL-2.1-or-later", "GNU Lesser General Public License v2.1 or later"], "lgpl-2.1"),
        (["AGPL-3.0-only", "AGPLv3", "GNU Affero General Public License v3"], "agpl-3.0"),
        (["CC-BY-SA-4.0", "CC BY-SA 4.0", "Creative Commons Attribution-ShareAlike 4.0 International"], "cc-by-sa-4.0"),
        (["CC0-1.0", "CC0", "cc0 1.0", "CC0 1.0 Universal"], "cc0-1.0"),
        (["PSF-2.0", "psf", "Python Software Foundation License"], "psf-2.0"),
        (["MPL 2.0", "Mozilla Public License 2.0 (MPL 2.0)"], "mpl-2.0"),
        (["ODC-By-1.0", "odc-by"], "odc-by"),
        (["ISC", "ISC License (ISCL)"], "isc"),
        (["unknown", "Unknown", "", "  ", "NOASSERTION", "n/a", "None"], "unknown"),
        (["GFDL-1.3-or-later", "GNU Free Documentation License"], "gfdl"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_names_of_one_licence_become_one(names, expected):
    assert {name: normalize_license(name) for name in names} == dict.fromkeys(names, expected)


@pytest.mark.parametrize("name", sorted(HUB_LICENSES))
def test_every_licence_of_the_hub_is_its_own_name_in_any_case(name):
    assert normalize_license(name) == normalize_license(name.upper()) == name
    if name != "other":
        assert hub_licenses([name]) == ([name], [])


@pytest.mark.parametrize("name", ["my own terms", "Look, nobody may use this, or only on Sundays", "(C) Someone 2020"])
def test_a_name_on_no_list_is_kept_whole(name):
    assert normalize_license(f" {name} ") == name
    assert hub_licenses([name]) == ([], [name])
    assert split_licenses(name) == [name]


def test_the_licences_of_an_expression_count_each():
    assert normalize_license("MIT  OR Apache-2.0") == "mit OR apache-2.0"
    assert normalize_license("(MIT OR Apache 2.0) AND BSD-3-Clause") == "(mit OR apache-2.0) AND bsd-3-clause"
    assert normalize_license("MIT/Apache-2.0") == "mit OR apache-2.0"
    assert hub_licenses(["MIT OR Apache-2.0", "psf-2.0, mit"]) == (["apache-2.0", "mit"], ["psf-2.0"])
    assert hub_licenses(["GPL-2.0-only WITH Classpath-exception-2.0"]) == (["gpl-2.0"], [])
    assert normalize_license(normalize_license("MIT or Apache-2.0")) == "mit OR apache-2.0"


def test_spdx_spells_its_own_identifiers():
    assert spdx_identifier("psf-2.0") == "PSF-2.0"
    assert spdx_identifier("my own terms") is None
