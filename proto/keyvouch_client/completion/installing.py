"""Which shells there are, and how a script gets into them: for the help of the commands that print scripts."""

from __future__ import annotations

__all__ = ["INSTALLATION", "SHELLS"]

SHELLS = ("bash", "zsh", "fish")

INSTALLATION = """\
install it for yourself, once; it works in every new shell:
  bash  {0} completion bash > ~/.local/share/bash-completion/completions/{0}
        (without the package bash-completion: source <({0} completion bash) in ~/.bashrc)
  zsh   {0} completion zsh > DIRECTORY/_{0}     (a directory of $fpath)
  fish  {0} completion fish > ~/.config/fish/completions/{0}.fish"""
"""`{0}` is the program."""
