"""Security keys as a provider of the agent: which key it is, whether it is there, and a ceremony with it.

Discovery, choice by touch and the words for failures stand in `keyvouch_client.security_keys`; the ceremony with one
open key in `keyvouch_agent.providers.ctap_session`.
"""
