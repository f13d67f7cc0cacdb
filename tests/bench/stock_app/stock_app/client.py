"""Adds one step to the array that it is sent: training that takes no time."""

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()  # type: ignore[untyped-decorator]
def train(message: Message, context: Context) -> Message:
    """Answer with the next array."""
    current = message.content["arrays"]["model"].numpy()
    arrays = ArrayRecord({"model": Array(current + np.float32(0.5))})
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 100})})
    return Message(content=content, reply_to=message)
