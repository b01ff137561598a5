"""A webhook goes to the open internet and to what the operator opened, however an address is spelt."""

from ipaddress import ip_address

import pytest

from api.public_address import Allowed, ForbiddenAddress, Target, check_url, choose, is_public

INSIDE = [
    "0.0.0.0",
    "10.0.0.1",
    "100.64.0.1",  # carrier-grade NAT
    "100.100.100.200",  # Alibaba's metadata
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",  # Azure's wire server
    "169.254.169.254",  # metadata of most clouds
    "172.16.0.1",
    "192.0.0.192",  # Oracle's metadata
    "192.0.2.1",
    "192.168.1.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::10.0.0.1",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::1",
    "2001::1",  # Teredo
    "2001:db8::1",
    "2002:7f00:1::",  # 6to4 of 127.0.0.1
    "fc00::1",
    "fd00:ec2::254",  # Amazon's metadata
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
]


@pytest.mark.parametrize("address", INSIDE)
def test_an_address_inside_is_refused(address: str) -> None:
    assert not is_public(ip_address(address))
    with pytest.raises(ForbiddenAddress, match="no public address"):
        choose("some.example.com", [ip_address(address)], Allowed())


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "64:ff9b::8.8.8.8", "::ffff:8.8.8.8"])
def test_an_address_of_the_open_internet_is_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://127.0.0.1./",
        "http://127.1/",
        "http://0x7f.1/",
        "http://0x7f000001/",
        "http://0177.0.0.1/",
        "http://2130706433/",
        "http://2130706433./",
        "http://[::1]/",
        "http://[::ffff:10.0.0.1]/",
        "http://[fe80::1%25eth0]/",
        "http://169.254.169.254/latest/meta-data/",
        "https://user@example.com/",
        "https://user:secret@example.com/",
        "https://example.com\\@127.0.0.1/",
        "https://example.com/#fragment",
        "https://example.com/a b",
        "https://example.com/\r\nHost: inside",
        "https://exämple.com/",
        "https://example.com:99999/",
        "https://",
        "https:///path",
        "https://./",
        "https://a..b/",
        "https://-a.example.com/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "http://[::1/",
    ],
)
def test_a_url_that_no_webhook_may_have_is_refused(url: str) -> None:
    with pytest.raises(ForbiddenAddress):
        check_url(url, Allowed())


def test_what_a_url_names() -> None:
    assert check_url("https://Example.COM./hooks?a=1", Allowed()) == Target("https", "example.com", 443)
    assert check_url("http://8.8.8.8:8080/", Allowed()) == Target("http", "8.8.8.8", 8080)


def test_an_operator_opens_hosts_addresses_and_networks_and_nothing_beside_them() -> None:
    allowed = Allowed(["hooks.internal", "10.1.0.0/16", "::1"])
    assert allowed("hooks.internal", ip_address("192.168.0.9"))
    assert allowed("any", ip_address("10.1.2.3"))
    assert allowed("any", ip_address("::1"))
    assert not allowed("other.internal", ip_address("192.168.0.9"))
    assert not allowed("any", ip_address("10.2.0.1"))
    check_url("http://[::1]:8000/", allowed)


def test_of_several_addresses_only_open_ones_are_connected_to() -> None:
    inside, outside = ip_address("10.0.0.1"), ip_address("8.8.8.8")
    assert choose("example.com", [inside, outside], Allowed()) == [outside]


def test_a_name_that_stands_for_nothing_is_refused_in_the_same_words_as_one_inside() -> None:
    refusals = []
    for addresses in ([], [ip_address("10.0.0.1")]):
        with pytest.raises(ForbiddenAddress) as refused:
            choose("a.internal", addresses, Allowed())
        refusals.append(str(refused.value))
    assert refusals[0] == refusals[1]


def test_an_entry_of_the_setting_that_means_nothing_is_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match="no host"):
        Allowed(["http://hooks.internal/"])
