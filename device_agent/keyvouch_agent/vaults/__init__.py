"""What holds keys: each vault answers the `KeyVault` port of `keyvouch_agent.authenticator.vault`."""
