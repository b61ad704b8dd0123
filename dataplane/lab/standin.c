// SPDX-License-Identifier: Apache-2.0
/*
 * podlane-stand-in: what runs in a pod of the lab in place of its containers,
 * and the client that `podlane lab check` sends its requests with.
 *
 *   podlane-stand-in serve NAME PROTOCOL:PORT...
 *
 * Listens on every port, in both families, then goes to the background, gives
 * up root, and answers. It exits with 1, having served nothing, if a port can't
 * be had. An answer is one line of JSON:
 *
 *   {"pod":NAME,"client":ADDRESS,"clientPort":N,"server":ADDRESS,"port":N,"protocol":"TCP"}
 *
 * TCP: to an HTTP/1.x request as its response (kept alive unless asked not to),
 * to any other line of text, and to a client that says nothing and ends, as
 * that line alone. UDP: to each datagram as one datagram from the address that
 * it was sent to.
 *
 *   podlane-stand-in client FIRST-PORT [SECONDS PAUSE-MS]
 *
 * Reads jobs from stdin, a line each, until its end:
 *   ID PROTOCOL ADDRESS PORT COUNT TIMEOUT-MS
 * and makes COUNT requests for each, every one from a new source port (from
 * FIRST-PORT up, in a ring, without those in use): to the datapath each is a
 * new flow, whatever this client did before. With SECONDS, all jobs are done
 * again and again, with a pause, for that long or until SIGTERM. On stdout, a
 * line a request:
 *   ID <tab> ok|refused|timeout|error <tab> MICROSECONDS <tab> answer or error
 * and in the end: next <tab> PORT
 *
 * It must not know Services: who may answer is the caller's to judge.
 */
#define _GNU_SOURCE
#include "standin_client.h"
#include "standin_server.h"

int main(int argc, char **argv)
{
	want_files();
	if (argc >= 3 && strcmp(argv[1], "serve") == 0) {
		own_name = argv[2];
		serve(argc - 3, argv + 3);
	}
	if (argc == 3 && strcmp(argv[1], "client") == 0)
		return client(atoi(argv[2]), 0, 0);
	if (argc == 5 && strcmp(argv[1], "client") == 0)
		return client(atoi(argv[2]), atol(argv[3]), atol(argv[4]));
	die("usage: podlane-stand-in serve NAME PROTOCOL:PORT...\n"
	    "       podlane-stand-in client FIRST-PORT [SECONDS PAUSE-MS]");
}
