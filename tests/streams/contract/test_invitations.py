"""Which invitations a device follows: signed by a trusted key, for it, fresh, and each once."""

import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from streams.contract.errors import ArtifactError, MalformedRecord
from streams.contract.invitations import (
    CLOCK_SPARE_S,
    Followed,
    Invitation,
    SignedInvitation,
    sign_invitation,
)

KEY = Ed25519PrivateKey.generate()
NOW_US = 1_800_000_000_000_000


def invitation(**changes: object) -> Invitation:
    given_fields = {
        "task": "tiny",
        "task_version": 1,
        "run": "7",
        "superlink": "127.0.0.1:9093",
        "devices": ["d0", "d1"],
        "issued_us": NOW_US,
        "lease_s": 300.0,
    }
    return Invitation.of_fields({**given_fields, **changes})


def test_a_trusted_key_s_invitation_is_read_back_and_no_other_s() -> None:
    signed = SignedInvitation.decode(sign_invitation(invitation(), KEY).encode())
    assert signed.verified([KEY.public_key()]).replace(key="0" * 16) == invitation()
    with pytest.raises(ArtifactError, match="not trusted"):
        signed.verified([Ed25519PrivateKey.generate().public_key()])
    changed = signed.text.replace('"run":"7"', '"run":"8"')
    with pytest.raises(ArtifactError, match="did not make"):
        signed.replace(text=changed).verified([KEY.public_key()])


@given(
    st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)),
    st.dictionaries(st.sampled_from(["superlink", "run", "devices", "lease_s"]), st.text()),
)
def test_what_is_no_invitation_is_named(junk: bytes, fields: dict[str, str]) -> None:
    with pytest.raises(MalformedRecord):
        SignedInvitation.decode(junk)
    text = json.dumps({**json.loads(sign_invitation(invitation(), KEY).text), "issued_us": "x"})
    signature = KEY.sign(b"TWINVITE1\n" + text.encode()).hex()
    with pytest.raises(ArtifactError, match="issued_us"):
        SignedInvitation(text=text, signature=signature).verified([KEY.public_key()])


@pytest.mark.parametrize(
    ("changes", "after_s", "refusal"),
    [
        ({}, 0.0, None),
        ({}, 300.0 + CLOCK_SPARE_S - 1, None),
        ({}, 300.0 + CLOCK_SPARE_S + 1, "expired"),
        ({}, -3600.0, None),  # a clock that is slow: the lease still ends
        ({"task": "har"}, 0.0, "task"),
        ({"task_version": 2}, 0.0, "task"),
    ],
)
def test_what_is_not_for_the_task_or_has_expired_is_refused(
    changes: dict[str, object], after_s: float, refusal: str | None
) -> None:
    now_us = NOW_US + int(1e6 * after_s)
    assert Followed().refusal(invitation(**changes), "tiny", 1, now_us) == refusal


@given(st.lists(st.tuples(st.sampled_from("789"), st.integers(0, 5)), max_size=30))
def test_each_is_followed_once_and_none_after_a_later_one_of_its_run(
    given_order: list[tuple[str, int]],
) -> None:
    followed, last = Followed(), dict[str, int]()
    for run, second in given_order:
        found = invitation(run=run, issued_us=NOW_US + second * 1_000_000)
        refused = followed.refusal(found, "tiny", 1, NOW_US)
        assert (refused == "replayed") == (second <= last.get(run, -1))
        if refused is None:
            followed = Followed.decode(followed.after(found, NOW_US).encode())
            last[run] = second


def test_runs_that_have_expired_are_forgotten_when_their_replay_is_refused_anyway() -> None:
    followed = Followed()
    for number in range(1000):
        now_us = NOW_US + number * 60_000_000
        followed = followed.after(invitation(run=str(number), issued_us=now_us), now_us)
    assert len(followed.runs) < 20
    assert followed.refusal(invitation(run="0"), "tiny", 1, now_us) == "expired"
