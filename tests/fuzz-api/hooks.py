"""Leads the fuzzer to where something is: most requests are about the cluster, container and machine that exist, and each
carries the token that its operation is for. What is left to chance finds the refusals."""

import os
import random

import schemathesis

CLUSTER = "fuzz/one"
EXISTING = {"cluster": CLUSTER, "container": "reader", "machine": "i-1", "group": "general", "subject": "container"}
TOKENS = {
    "platform": os.environ["FUZZ_PLATFORM_TOKEN"],
    "management": os.environ["FUZZ_MANAGEMENT_TOKEN"],
    "machine": os.environ["FUZZ_MACHINE_TOKEN"],
}
# Of its own: the fuzzer resets the one that all share.
CHANCE = random.Random(os.environ.get("SEED", "0"))
# These end the stage that the others play on.
STAGE_ENDERS = {"delete_cluster", "rotate_token", "revoke_token", "remove_machine"}


@schemathesis.hook
def before_call(context, case, kwargs):
    operation = case.operation.definition.raw
    ends_stage = operation["operationId"] in STAGE_ENDERS
    if not ends_stage and isinstance(case.path_parameters, dict):
        for name, value in EXISTING.items():
            if name in case.path_parameters and CHANCE.random() < 0.8:
                case.path_parameters[name] = value
    if not ends_stage and isinstance(case.body, dict) and "clusterId" in case.body and CHANCE.random() < 0.8:
        if operation["operationId"] != "create_cluster":
            case.body["clusterId"] = CLUSTER
    kinds = [name for entry in operation["security"] for name in entry]
    headers = case.headers if case.headers is not None else {}
    if kinds and CHANCE.random() < 0.97:
        headers["Authorization"] = f"Bearer {TOKENS[CHANCE.choice(kinds)]}"
    # A key that comes again by chance would answer most writes with the refusal of reuse.
    if "Idempotency-Key" in headers and CHANCE.random() < 0.8:
        del headers["Idempotency-Key"]
    case.headers = headers
