"""The reader of console blocks, which the tests of the README lean on."""

import pytest

from support.readme import Block, Command, console_blocks, named_files

PAGE = """# Title
## Tour
```console server
$ keyvouch-server run \\
    --home there
listening
on 8443
$ second
```
```python
$ not a command
```
### Next
```console
$ third
```
"""


def test_commands_output_terminals_and_sections():
    assert console_blocks(PAGE) == [
        Block(
            "Tour",
            "server",
            (Command("keyvouch-server run --home there", 4, ("listening", "on 8443")), Command("second", 8)),
        ),
        Block("Next", "", (Command("third", 15),)),
    ]


@pytest.mark.parametrize("page", ["```console\n$ left open\n", "```console\noutput without a command\n```\n"])
def test_a_broken_block_is_an_error(page: str):
    with pytest.raises(ValueError, match=r"never ends|starts with a command"):
        console_blocks(page)


def test_files_to_save():
    page = "```python\nnot saved\n```\n```python try/shop.py\nimport shop\n\nshop.run()\n```\n"
    assert named_files(page) == {"try/shop.py": "import shop\n\nshop.run()\n"}
