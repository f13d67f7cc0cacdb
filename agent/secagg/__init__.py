"""Secure aggregation as a pure protocol core: messages, time and randomness in, messages out.

The coordinator learns the sum over a cohort and nothing about one hospital, although it relays every message, may lie
in all of them, and may conspire with c hospitals. `docs/secure-aggregation.md` describes the protocol byte by byte.

At a node (`agent.secagg.node`), one session a (study, data set):

    session = NodeSession(identity=NodeIdentity(site, certificate, sign), terms=terms, roster=roster,
                          coordinator=public_key, journal=journal, initial_model=vector, randomness=os.urandom)
    reply = session.advertise(frame)                       # leg 0, once a run and after each restart
    accepted = session.accept(frame)                       # leg 1: every check that reads no data; raises or returns
    upload = session.masked_input(Contribution(update, weight, words))   # or None where training failed
    send(upload.frame); note_locally(upload.declined)      # `declined` never leaves the box
    reply = session.agree(frame)                           # leg 2: shares, an agreement, or a signed abort
    reply = session.reveal(frame)                          # leg 3, only where hospitals vanished

At the coordinator (`agent.secagg.server`), one session a run and one `ServerRound` an attempt:

    server = ServerSession(terms=terms, run=os.urandom(16), roster=roster, sign=sign)
    server.receive_bundle(reply)                           # leg 0, each reply to server.advertise_request()
    attempt = server.begin_round(1, model_bytes, previous=digest_of_last_sum)
    attempt.receive_masked_input(site, reply)              # leg 1, each reply to attempt.masked_input_request()
    attempt.receive_agreement(site, reply)                 # leg 2, each reply to attempt.agree_requests()[site]
    attempt.receive_reveal(site, reply)                    # leg 3 if attempt.needs_reveal: attempt.reveal_request()
    result = attempt.finish()                              # RoundSum: weighted mean, sums of words, who lied

Where `attempt.verdict` is ABORT when the deadline passes: send `attempt.abort_request()` to the whole cohort (silent
hospitals too, once they are back), take the replies with `receive_agreement` until `attempt.abort_certificate()` is not
None, and begin the next attempt of the same round with `attempt=k + 1, abort=certificate`, the same model and the same
hospitals. Where leg 2 or 3 cannot be finished, that round's number is spent: begin the next round with the same model.

Frames are `agent.core.wire.Frame`s. A node's method that raises has sent nothing; the wire carries one `Refusal` word.
`Terms` come from the signed study, the `Journal` and the `Roster` from whoever wires the session.
"""
