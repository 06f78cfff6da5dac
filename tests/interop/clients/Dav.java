import java.io.ByteArrayInputStream;
import java.io.InputStream;
import java.net.HttpURLConnection;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;

/** Files on a WebDAV server, with HttpURLConnection and with HttpClient; prints every response. */
public class Dav {
    static String url;

    public static void main(String[] arguments) throws Exception {
        url = arguments[0];
        byte[] large = Files.readAllBytes(Path.of("files/large.bin"));
        byte[] small = Files.readAllBytes(Path.of("files/small.txt"));
        withHttpUrlConnection(large, small);
        for (HttpClient.Version version : HttpClient.Version.values()) {
            withHttpClient(HttpClient.newBuilder().version(version).build(), large);
        }
    }

    static void withHttpUrlConnection(byte[] large, byte[] small) throws Exception {
        for (boolean chunked : new boolean[] {false, true}) {
            connect("PUT", "/connection.bin", large, chunked);
            connect("PUT", "/connection.txt", small, chunked);
            connect("GET", "/connection.bin", null, false);
        }
        connect("HEAD", "/connection.bin", null, false);
        connect("OPTIONS", "/", null, false);
        connect("DELETE", "/connection.txt", null, false);
        connect("POST", "/seed/small.txt", small, false);
        connect("GET", "/missing", null, false);
    }

    static void withHttpClient(HttpClient client, byte[] large) throws Exception {
        BodyPublisher none = BodyPublishers.noBody();
        BodyPublisher known = BodyPublishers.ofByteArray(large);
        BodyPublisher stream = BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(large));
        String made = "/made-" + client.version() + "/";
        send(client, "MKCOL", made, none);
        send(client, "PUT", made + "large.bin", known);
        send(client, "PUT", made + "stream.bin", stream);
        send(client, "COPY", made + "large.bin", none, "Destination", url + made + "copied.bin");
        send(client, "MOVE", made + "stream.bin", none, "Destination", url + made + "moved.bin");
        send(client, "PROPFIND", made, none, "Depth", "0");
        send(client, "GET", made + "moved.bin", none);
        send(client, "GET", made + "moved.bin", none, "Range", "bytes=10-19");
        send(client, "DELETE", made + "copied.bin", none);
    }

    static void connect(String method, String path, byte[] body, boolean chunked) throws Exception {
        URI uri = URI.create(url + path);
        HttpURLConnection connection = (HttpURLConnection) uri.toURL().openConnection();
        connection.setRequestMethod(method);
        if (body != null) {
            connection.setDoOutput(true);
            if (chunked) {
                connection.setChunkedStreamingMode(10_000);
            } else {
                connection.setFixedLengthStreamingMode(body.length);
            }
            connection.getOutputStream().write(body);
            connection.getOutputStream().close();
        }
        int status = connection.getResponseCode();
        InputStream response =
            status < 400 ? connection.getInputStream() : connection.getErrorStream();
        byte[] content = response == null ? new byte[0] : response.readAllBytes();
        System.out.println("HttpURLConnection " + method + " " + path);
        report(status, connection.getHeaderFields(), content);
    }

    static void send(
        HttpClient client, String method, String path, BodyPublisher body, String... headers
    ) throws Exception {
        HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(url + path));
        request.method(method, body);
        if (headers.length > 0) {
            request.headers(headers);
        }
        HttpResponse<byte[]> response = client.send(request.build(), BodyHandlers.ofByteArray());
        System.out.println("HttpClient " + method + " " + path);
        report(response.statusCode(), response.headers().map(), response.body());
    }

    static void report(int status, Map<String, List<String>> headers, byte[] body)
        throws Exception {
        System.out.println(status);
        Map<String, List<String>> sorted = new TreeMap<>(String.CASE_INSENSITIVE_ORDER);
        headers.forEach((name, values) -> sorted.put(name == null ? "" : name, values));
        sorted.forEach(
            (name, values) -> values.forEach(value -> System.out.println(name + ": " + value))
        );
        // Text as sorted elements: servers list properties in random order.
        String type = sorted.getOrDefault("Content-Type", List.of("")).get(0);
        if (type.matches(".*(xml|html).*")) {
            String[] elements = new String(body).split("\n|(?<=>)(?=<)");
            Arrays.stream(elements).sorted().forEach(System.out::println);
        } else {
            byte[] hash = MessageDigest.getInstance("SHA-256").digest(body);
            System.out.println(HexFormat.of().formatHex(hash));
        }
        System.out.println();
    }
}
